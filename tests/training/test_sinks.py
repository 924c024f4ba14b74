"""Where the values and pictures of a run go: TensorBoard, W&B, a sink of the user's."""

import json
import struct
import sys

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from tiny_run import tiny_config
from training_runs import arguments, digests, losses, run_jobs, stats, user_module

from edm2lite.training import Hook, Sink, Trainer, flat
from edm2lite.training.__main__ import main

CPU = torch.device("cpu")


def test_pictures_and_tensorboard_hold_what_the_run_saw(tmp_path):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    changes = ("total_nimg=640", "sample_nimg=320", "sample_count=6", "sample_steps=2")
    folder = tmp_path / "a"
    Trainer(tiny_config(*changes, "tensorboard=true"), folder, CPU).train()
    pictures = sorted(p.name for p in (folder / "samples").iterdir())
    assert pictures == [f"{n:010d}-{s}.png" for n in (320, 640) for s in ("0.05000", "0.10000")]
    with Image.open(folder / "samples" / pictures[0]) as picture:
        # images of 8 x 8, ten times enlarged: six classes in a row, a line of names above them
        assert picture.mode == "L" and picture.size == (6 * 80 + 7 * 4, 16 + 80 + 2 * 4)
    found = events.EventAccumulator(str(folder / "tensorboard"))
    found.Reload()
    scalars = [(e.step, e.value) for e in found.Scalars("loss")]
    assert scalars == [(s["nimg"], pytest.approx(s["loss"])) for s in stats(folder)]
    tags = found.Tags()
    assert {"lr", "grad_norm", "mem_gib", "img_per_sec", "u_at/ln_sigma +0.50"} <= set(
        tags["scalars"]
    )
    assert tags["images"] == ["samples/sigma_rel 0.05000", "samples/sigma_rel 0.10000"]


def records(path):
    """The records of a W&B file: a log of LevelDB's form, with protocol buffers in it."""
    protobuf = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, position, record = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while position + 7 <= len(data):
        left = 2**15 - position % 2**15  # a header does not cross the end of a block
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack_from("<IHB", data, position)
        record += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # the whole of a record, or its last part
            yield protobuf.Record.FromString(record)
            record = b""


def logged(path):
    """(identifier, project, name), the history as dictionaries, and the exit code."""
    run, history, code = None, [], None
    for record in records(path):
        if record.HasField("run"):
            run = record.run.run_id, record.run.project, record.run.display_name
        if record.HasField("history"):
            items = record.history.item
            values = {i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items}
            history.append({k: v for k, v in values.items() if not k.startswith("_")})
        if record.HasField("exit"):
            code = record.exit.exit_code
    return run, history, code


@pytest.mark.slow
def test_a_run_and_its_continuation_are_one_run_of_wandb(run_dir, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR", "ARTIFACT_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / "elsewhere" / name))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    folder = tmp_path / "run"
    options = "wandb={project: tests, mode: offline}", "sample_nimg=640", "sample_count=2"
    totals = ("total_nimg=640", "total_nimg=1280")
    codes, text = run_jobs(*({"args": arguments(folder, *options, total)} for total in totals))
    assert codes == [[0], [0]], text
    assert digests(folder) == digests(run_dir) and losses(folder) == losses(run_dir)
    identifier = json.loads((folder / "wandb.json").read_text())["id"]
    files = sorted((folder / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2
    lines = stats(folder)
    for file, expected in zip(files, (lines[:2], lines[2:]), strict=True):
        run, history, code = logged(file)
        assert run == (identifier, "tests", "run") and code == 0
        scalars = [{k: v for k, v in line.items() if "samples/" not in k} for line in history]
        numbers = [{"nimg": line["nimg"], **dict(flat(line))} for line in expected]
        assert [line for line in scalars if len(line) > 1] == numbers
        pictures = [line for line in history if "samples/sigma_rel 0.05000.path" in line]
        assert [line["nimg"] for line in pictures] == [expected[-1]["nimg"]]
    assert not list((tmp_path / "home").iterdir()) and not list((tmp_path / "work").iterdir())


def test_a_missing_package_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    done = CliRunner().invoke(main, arguments(tmp_path / "a", "wandb=true"))
    assert done.exit_code == 1
    expected = "Error: wandb needs Weights & Biases; pip install 'edm2lite[wandb]'\n"
    assert done.output == expected
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        ("wandb={mode: somewhere}", "wandb.mode must be 'online', 'offline' or"),
        ("wandb={projekt: a}", "unknown key wandb.projekt; the nearest known one is wandb.project"),
        ("wandb=3", "wandb must hold keys and values, got 3"),
        ("sinks=[{kind: chat}]", "sinks.0.kind must be one of tensorboard, wandb, or module:name"),
    ],
)
def test_mistakes_in_the_settings_of_sinks_are_explained(change, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(change)


def test_wandb_is_on_or_off_by_one_word():
    assert tiny_config("wandb=true").wandb.project == "edm2lite"
    assert tiny_config("wandb={name: a}", "wandb=false").wandb is None
    assert tiny_config("wandb.mode=offline").wandb.mode == "offline"


NOTES = """
    from dataclasses import dataclass
    from pathlib import Path

    from edm2lite.training import Sink, flat


    @dataclass(kw_only=True)
    class Notes(Sink):
        path: str

        def start(self, trainer):
            self.file = open(self.path, "w")

        def scalars(self, line):
            print(line["nimg"], dict(flat(line))["loss"], file=self.file)

        def close(self, *, failed):
            print("failed" if failed else "done", file=self.file)
            self.file.close()
"""


def test_a_sink_of_the_users_gets_every_line(tmp_path, monkeypatch):
    user_module(tmp_path, monkeypatch, "notes_a", NOTES)
    sink = f"sinks=[{{kind: 'notes_a:Notes', path: '{tmp_path / 'notes'}'}}]"
    Trainer(tiny_config(sink, "total_nimg=640"), tmp_path / "run", CPU).train()
    expected = [f"{line['nimg']} {line['loss']}" for line in stats(tmp_path / "run")]
    assert (tmp_path / "notes").read_text().splitlines() == [*expected, "done"]


def test_sinks_hear_of_steps_pictures_and_failure(tmp_path):
    heard = []

    class Ear(Sink):
        def scalars(self, line):
            heard.append(("line", line["nimg"]))

        def advance(self, nimg):
            heard.append(nimg)

        def picture(self, name, picture, nimg):
            heard.append((name, picture.shape, nimg))

        def close(self, *, failed):
            heard.append(failed)

    class Failing(Hook):
        def run(self, trainer):
            raise RuntimeError("that is enough")

    config = tiny_config("status_nimg=64", "sample_nimg=64", "sample_count=2", "sample_steps=1")
    hooks, sinks = [Failing(every=96)], [Ear()]
    trainer = Trainer(config, tmp_path / "run", CPU, hooks=hooks, sinks=sinks)
    with pytest.raises(RuntimeError, match="that is enough"):
        trainer.train()
    pictures = [
        (f"samples/sigma_rel {s}", (16 + 256 + 2 * 4, 2 * 256 + 3 * 4, 1), 64)
        for s in ("0.05000", "0.10000")
    ]
    assert heard == [32, 64, ("line", 64), *pictures, 96, True]
