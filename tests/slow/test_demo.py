"""The demo, killed at each of its stages and started again; `pytest tests/slow` runs it."""

import json
import os
import signal
import subprocess
import sys
import time

from edm2lite.tensorfile import read_header

SHORT = (
    "--num", "60", "--set", "total_nimg=2560", "--set", "snapshot_nimg=256",
    "--set", "checkpoint_nimg=512", "--set", "net.backbone.model_channels=16",
    "--set", "net.backbone.head_channels=16",
)  # fmt: skip


def demo(out, *more):
    program = [sys.executable, "-m", "edm2lite.tools.edm2lite"]
    command = [*program, "demo", "--out", str(out), *SHORT, *more]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def contents(out):
    """Everything that does not hold a time or the random identifier of the run."""
    found = {}
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        if path.parent.name == "spread":  # named by a hash that the run's identifier is part of
            found[f"spread/{read_header(path).digest}"] = None
        elif path.suffix == ".safetensors":
            found[name] = read_header(path).digest
        elif name == "stats.jsonl":
            keep = ("nimg", "loss", "lr", "nonfinite_steps")
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[name] = [[line[k] for k in keep] for line in lines]
        elif path.suffix in (".png", ".csv", ".md", ".yaml") or name.endswith("dataset.json"):
            found[name] = path.read_bytes()
        else:
            found[name] = None
    return found


def test_demo_interrupted_and_started_again_ends_with_the_same_files(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    process = demo(whole)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "Best EMA length" in output and "$ edm2lite reconstruct" in output
    made = {p.name for p in whole.iterdir()}
    assert made >= {
        "config.yaml", "stats.jsonl", "snapshots", "sweep.csv", "sweep.png", "samples.png",
        "report.md",
    }  # fmt: skip
    # interrupted in training, in the sweep, and while generating
    for milestone in ("checkpoints/000000000512", "sweep.jsonl", "samples/last/settings.json"):
        process = demo(broken)
        while not (broken / milestone).exists() and process.poll() is None:
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = demo(broken)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    a, b = contents(whole), contents(broken)
    assert a.keys() == b.keys()
    different = [name for name in a if a[name] != b[name] and name != "report.md"]
    assert not different
    text = (broken / "report.md").read_text()
    assert text == (whole / "report.md").read_text()


def test_ctrl_c_at_the_demo_lets_training_write_its_checkpoint(tmp_path):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which programs inherit
    try:
        process = demo(tmp_path, "--set", "total_nimg=640000", "--set", "checkpoint_nimg=640000")
    finally:
        signal.signal(signal.SIGINT, before)
    while not list((tmp_path / "snapshots").glob("*.safetensors")) and process.poll() is None:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == 130, output
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert f"with a checkpoint in {saved}" in output and "failed" not in output
    assert output.endswith("Error: interrupted; the same command continues from what is on disk\n")
