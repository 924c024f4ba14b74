"""One training at a time writes to the folder of a run; what it left is continued whole."""

import shutil
import subprocess
import sys

import pytest
import torch
from tiny_run import tiny_config
from training_runs import arguments, digests, losses, names, run_jobs, stats

from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")
HOLD = (
    "import sys; from pathlib import Path; from edm2lite.claim import claim_folder\n"
    "mine = claim_folder(Path(sys.argv[1])); print('held', flush=True); input()"
)


@pytest.fixture
def busy(run_dir, tmp_path):
    """The folder of a run to which a living process writes."""
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"held\n"
        yield folder, other
        other.kill()


def content(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_a_second_trainer_is_refused_with_one_line_and_changes_nothing(busy):
    folder, other = busy
    before = content(folder)
    message = rf"run must be written by one process at a time, process {other.pid} on .*; wait for"
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_config(), folder, CPU)
    assert content(folder) == before


@pytest.mark.slow
def test_all_ranks_of_a_second_training_stop_with_one_line(busy):
    folder, other = busy
    before = content(folder)
    codes, text = run_jobs({"args": arguments(folder), "ranks": 2})
    assert codes == [[1, 1]]
    assert [line for line in text.splitlines() if "Error" in line or "at a time" in line] == [
        line for line in text.splitlines() if line.startswith(f"Error: {folder} must be written by")
    ]
    assert text.count(f"process {other.pid} on") == 1 and "Traceback" not in text
    assert content(folder) == before


def test_the_run_of_a_killed_trainer_is_taken_over_and_says_so(busy, run_dir, caplog):
    folder, other = busy
    other.kill()
    other.wait()
    Trainer(tiny_config(), folder, CPU).train()
    assert f"process {other.pid} on" in caplog.text and "ended while it wrote" in caplog.text
    assert names(folder) == names(run_dir) and digests(folder) == digests(run_dir)


def test_a_trainer_that_fails_lets_others_write(tmp_path):
    trainer = Trainer(tiny_config(), tmp_path / "a", CPU)
    assert (tmp_path / "a" / ".lock").exists()

    def broken():
        raise ValueError("an image is damaged")

    trainer.train_step = broken
    with pytest.raises(ValueError, match="damaged"):
        trainer.train()
    assert not list((tmp_path / "a").rglob(".lock"))
    (tmp_path / "a" / "checkpoints" / "000000000320").mkdir(parents=True)
    with pytest.raises(ValueError, match="no checkpoint in .* is intact"):
        Trainer(tiny_config(), tmp_path / "a", CPU)
    assert not list((tmp_path / "a").rglob(".lock"))


def test_a_trainer_whose_folder_was_taken_over_writes_nothing_more(tmp_path):
    folder = tmp_path / "a"
    trainer = Trainer(tiny_config(), folder, CPU)
    step = trainer.train_step

    def robbed():
        if trainer.nimg == 480:  # at 480 are snapshots, at 640 all
            trainer.ema.flush()
            trainer.checkpoints.flush()
            (folder / ".lock").rename(folder / "aside")
            (folder / ".lock").write_text("{}")
            robbed.before = content(folder)
        return step()

    trainer.train_step = robbed
    with pytest.raises(ValueError, match=r"\.lock must belong to this process while it writes"):
        trainer.train()
    after = content(folder)
    log = folder / "log.txt"  # where both say what happens, each on lines of its own
    assert b"another process took it over" in after.pop(log)[0]
    assert trainer.nimg == 640 and robbed.before.pop(log) and after == robbed.before


def test_a_checkpoint_does_not_take_its_name_in_a_folder_that_was_taken_over(tmp_path):
    folder = tmp_path / "a"
    trainer = Trainer(tiny_config("total_nimg=320"), folder, CPU)
    finish = trainer.outputs.finish_snapshots

    def robbed():
        finish()
        (folder / ".lock").unlink()

    trainer.outputs.finish_snapshots = robbed
    with pytest.raises(ValueError, match="another process took it over"):
        trainer.train()
    assert not list((folder / "checkpoints").iterdir())
    assert not (folder / "last.safetensors").exists()


def test_what_two_trainers_and_a_power_cut_left_is_continued_whole(run_dir, tmp_path, caplog):
    """As it was before one of two trainers was refused: snapshots moved aside, lines torn."""
    folder = tmp_path / "a"
    shutil.copytree(run_dir, folder)
    shutil.rmtree(folder / "checkpoints" / "000000001280")
    archive = folder / "snapshots" / "superseded"
    archive.mkdir()
    for path in sorted((folder / "snapshots").glob("*.safetensors"))[1:3]:
        path.rename(archive / path.name)
    path = folder / "stats.jsonl"
    first, *others = path.read_text().splitlines()
    torn = '{"nimg": 480, "validation": {"raw": 0.5}'  # ends after an inner brace
    path.write_text("\n".join([first, torn, *others, torn]))
    Trainer(tiny_config(), folder, CPU).train()
    assert names(folder) == names(run_dir) and digests(folder) == digests(run_dir)
    assert losses(folder) == losses(run_dir)
    assert [line["nimg"] for line in stats(folder)] == [320, 640, 960, 1280]
    assert f"{path}: 2 lines (2, 6) are not whole" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"run"'])
def test_a_damaged_identifier_is_named(text, tmp_path):
    folder = tmp_path / "a"
    Trainer(tiny_config("total_nimg=64"), folder, CPU).close()
    (folder / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json must hold the identifier .* is damaged"):
        Trainer(tiny_config("total_nimg=64"), folder, CPU)
    assert not (folder / ".lock").exists()
    assert (folder / "run.json").read_text() == text
