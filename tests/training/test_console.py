"""What a run says: lines on stderr and in log.txt, samples by default, what comes next."""

import logging
import re
import shlex
import sys

import pytest
import torch
from click.testing import CliRunner
from tiny_run import tiny_config
from training_runs import digests, stats

from edm2lite.ema import planning
from edm2lite.tools.edm2lite import COMMANDS
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training.config import load_config
from edm2lite.training.console import NEGATIVE_LOSS, Console
from edm2lite.training.dry_run import report
from edm2lite.training.overview import overview
from edm2lite.training.samples import sample_interval
from edm2lite.training.trainer import Trainer
from edm2lite.units import format_duration, parse_count

CPU = torch.device("cpu")
TICK = re.compile(
    r"step (\d+) of (\d+), (\S+) images, loss (\S+), lr (\S+), (\S+) img/s, (.+) left"
)


@pytest.fixture
def heard(caplog):
    """What is said, as on the command line: lines that are heard, and no bar."""
    caplog.set_level(logging.INFO, "edm2lite")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "edm2lite.training.console"]


def log(folder):
    return (folder / "log.txt").read_text(encoding="utf-8").splitlines()


def train(folder, *changes):
    Trainer(tiny_config(*changes), folder, CPU).train()
    return folder


def test_a_run_says_what_it_is_how_it_goes_and_what_comes_next(heard, tmp_path, capsys):
    folder = train(tmp_path / "a", "total_nimg=640")
    lines = heard()
    assert log(folder)[1:] == lines and "edm2lite 0." in log(folder)[0]
    rows = dict(line.split(maxsplit=1) for line in lines[:8])
    assert rows["device"].startswith("CPU, ") and rows["start"] == "from random weights"
    size = sum(p.numel() for p in Trainer(tiny_config(), tmp_path / "b", CPU).net.parameters())
    kind, amount = re.match(r"(\w+), (\S+) parameters$", rows["network"]).groups()
    assert kind == "unet" and float(parse_count(amount)) == pytest.approx(size, rel=1e-3)
    assert rows["data"].startswith("digits: 1797 images of 1 x 8 x 8, 10 classes (0, 1, 2, ")
    assert rows["length"] == "20 steps of 32 images, 640 images in all"
    assert "EMA length 5 % and 10 %, a snapshot of each every 160" in rows["averages"]
    assert str(folder) in rows["files"] and "no samples" in rows["files"]
    ticks = [TICK.fullmatch(line).groups() for line in lines if line.startswith("step")]
    for tick, line in zip(ticks, stats(folder), strict=True):
        assert (int(tick[0]), int(tick[1])) == (line["nimg"] // 32, 20)
        assert float(tick[3]) == pytest.approx(line["loss"], abs=5e-5)
        assert float(tick[4]) == pytest.approx(line["lr"], rel=5e-3)
        assert tick[6] == format_duration((640 - line["nimg"]) / line["img_per_sec"])
    assert capsys.readouterr().err == ""  # no bar where lines are read


def test_what_comes_next_can_be_copied_and_works(heard, tmp_path):
    train(tmp_path / "a b", "total_nimg=320", "status_nimg=320")
    said = heard()
    commands = [shlex.split(line) for line in said[said.index("next:") + 1 :]]
    assert {words[0] for words in commands} == {"edm2lite"}
    assert {words[1] for words in commands} == {"sweep", "play", "generate"}
    assert {"sweep", "generate"} <= set(COMMANDS)
    (words,) = [words for words in commands if words[1] == "generate"]
    words[words.index("grid.png")] = str(tmp_path / "grid.png")
    done = CliRunner().invoke(edm2lite, [*words[1:], "--steps", "1"])
    assert done.exit_code == 0 and (tmp_path / "grid.png").is_file(), done.output


def test_a_run_that_goes_on_says_where_and_one_that_has_ended_says_so(heard, tmp_path):
    folder = train(tmp_path / "a", "total_nimg=320")
    train(folder, "total_nimg=640")
    assert f"continues at nimg = 320, from {folder}/checkpoints/000000000320" in "".join(heard())
    first = log(folder)
    before = digests(folder)
    train(folder, "total_nimg=640")
    train(folder, "total_nimg=320")
    added = log(folder)[len(first) :]
    assert log(folder)[: len(first)] == first  # appended
    assert "has ended, at nimg = 640: there is nothing left to do" in added[1]
    assert "--set total_nimg=1280" in added[1] and added[2] == "next:"
    assert "is at nimg = 640 already, beyond total_nimg = 320" in added[len(added) // 2 + 1]
    assert digests(folder) == before and not any(line.startswith("step") for line in added)


def test_on_a_terminal_a_bar_moves_and_the_file_has_the_lines(heard, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder = train(tmp_path / "a", "total_nimg=640")
    ticks = [line for line in log(folder) if TICK.fullmatch(line)]
    assert len(ticks) == 2 and not set(ticks) & set(heard())
    assert "640/640" in capsys.readouterr().err


def test_a_negative_loss_is_explained_once(heard, tmp_path):
    console, trainer = Console(), Trainer(tiny_config(), tmp_path / "a", CPU)
    console.start(trainer)
    tick = {"lr": 0.01, "img_per_sec": 100.0}
    for nimg, loss in ((320, 0.1), (640, None), (960, -0.1), (1280, -0.2)):
        console.scalars({"nimg": nimg, "loss": loss, **tick})
        console.scalars({"nimg": nimg, "validation": {"raw": 0.5}})  # no tick
    assert "an unknown time left" in console._status(
        {"nimg": 320, "loss": 0.1, **tick, "img_per_sec": 0.0}
    )
    console.close(failed=True)
    trainer.close()
    assert heard().count(NEGATIVE_LOSS) == 1
    ticks = [line for line in heard() if line.startswith("step")]
    assert heard().index(NEGATIVE_LOSS) == heard().index(ticks[2]) + 1
    assert "loss not finite" in ticks[1] and "10 s left" in ticks[0] and "0 s left" in ticks[3]


def test_warnings_errors_and_signals_are_in_the_file(heard, tmp_path):
    trainer = Trainer(tiny_config("total_nimg=320"), tmp_path / "a", CPU)

    def fail(*_):
        logging.getLogger("edm2lite.training.hooks").warning("odd")
        raise RuntimeError("that is\nenough")

    trainer.outputs.save_snapshots = fail
    with pytest.raises(RuntimeError, match="that is"):
        trainer.train()
    assert log(tmp_path / "a")[-2:] == ["odd", "ended at nimg = 160: that is enough"]
    full = Console()
    full.start(trainer)
    full._log._path = tmp_path / "nowhere" / "log.txt"
    full.close(failed=True)  # raises nothing in place of what failed
    stopped = Trainer(tiny_config("total_nimg=640"), tmp_path / "b", CPU)
    stopped.outputs.save_snapshots = lambda: setattr(stopped, "stopped_by", "SIGTERM")
    stopped.train()
    assert log(tmp_path / "b")[-1] == "stopped for SIGTERM at nimg = 160"
    last = Trainer(tiny_config("total_nimg=160"), tmp_path / "c", CPU)
    last.outputs.save_last = fail
    with pytest.raises(RuntimeError, match="that is"):
        last.train()
    assert log(tmp_path / "c")[-2:] == ["odd", "ended at nimg = 160: that is enough"]
    assert "next:" not in log(tmp_path / "c")
    assert not logging.getLogger("edm2lite").handlers


def test_samples_leave_the_course_of_a_run_alone(tmp_path):
    """Weights, averages and losses of a run with grids are those of one without, bit for bit."""
    with_grids = ("total_nimg=320", "sample_nimg=64", "sample_count=4", "sample_steps=2")
    a, b = train(tmp_path / "a", *with_grids), train(tmp_path / "b", "total_nimg=320")
    assert len(list((a / "samples").iterdir())) == 10 and not (b / "samples").exists()
    assert digests(a) == digests(b)
    assert [line["loss"] for line in stats(a)] == [line["loss"] for line in stats(b)]


def test_samples_come_by_default_and_take_two_percent_at_most():
    def interval(*changes):
        return sample_interval(load_config("digits", changes))

    # 32 images, 31 evaluations, 2 averages, each a third of a step: 661 images, of 2 % 33067
    assert interval() == 33088 and 33088 % 64 == 0
    assert interval("total_nimg=6400000") == 200000  # 32 grids
    assert interval("sample_nimg=0") == 0 and interval("sample_nimg=640") == 640
    assert interval("sample_steps=2", "sample_count=1", "total_nimg=64Ki") == 2048
    latents = load_config("edm2-img512-s", ["data.source=x"])
    assert sample_interval(latents) == 0  # an autoencoder would have to be there


def test_a_dry_run_estimates_the_time_by_a_step(tmp_path):
    text = report(tiny_config("total_nimg=64000"), tmp_path / "a", 2)
    line = next(line for line in text.splitlines() if line.startswith("time "))
    whole, num, speed = re.match(
        r"time +(.+) in all, by a step of (\d+) images at (\S+) img/s \(CPU, .*, and 2 proc", line
    ).groups()
    speed = float(parse_count(speed))
    assert int(num) == 16  # of one process
    bounds = [format_duration(64000 / 2 / speed / (1 + sign * 1e-3)) for sign in (1, 0, -1)]
    assert whole in bounds
    large = report(tiny_config("net.backbone.model_channels=4096"), tmp_path / "a", 1)
    assert re.search(r"time +not measured: this CPU is too slow for \d", large)


def test_a_dry_run_of_thousands_of_snapshots_solves_for_a_few_of_them(tmp_path, monkeypatch):
    """The work does not grow with the number of files: a solver of 3000 takes a minute."""
    solved, solve = [], planning.solve_calibrated
    monkeypatch.setattr(
        planning, "solve_calibrated", lambda used, *a: solved.append(len(used)) or solve(used, *a)
    )
    many = ("total_nimg=48000", "snapshot_nimg=32", "checkpoint_nimg=48000", "status_nimg=48000")
    assert "3000 files" in report(tiny_config(*many), tmp_path / "a", 1)
    assert solved == [solved[0]] and solved[0] <= 512


def test_an_adapter_and_many_classes_fit_in_a_line(run_dir, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        f"init: {run_dir}\ntune: {{kind: lora, rank: 1}}\ndata: {{source: digits}}\n"
        "batch_size: 32\ntotal_nimg: 320\nsnapshot_nimg: 320\ncheckpoint_nimg: 320\n"
        "status_nimg: 320\n"
    )
    trainer = Trainer(load_config(str(path)), tmp_path / "a", CPU)
    rows = dict(line.split(maxsplit=1) for line in overview(trainer))
    trainer.close()
    assert re.fullmatch(r"unet, \S+ parameters, \S+ of them trained \(lora\)", rows["network"])
    assert rows["start"] == f"fine-tunes {run_dir}"
