"""What the tests of training share: starting commands, and comparing what they leave."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

from tiny_run import TINY

from edm2lite.ema import list_snapshots
from edm2lite.tensorfile import read_header

HERE = Path(__file__).parent


def arguments(out, *changes):
    """Of the training command, for the run of ``conftest.tiny_config``."""
    sets = [part for change in (*TINY, *changes) for part in ("--set", change)]
    return ["digits", "--out", str(out), *sets]


def run_jobs(*jobs):
    """Exit codes [[of every rank], ...] and the text on stderr; see processes.py."""
    command = [
        sys.executable,
        str(HERE / "processes.py"),
        json.dumps([{"ranks": 1, **j} for j in jobs]),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def environment(**more):
    return {**os.environ, "OMP_NUM_THREADS": "1", **more}


def stats(folder):
    return [json.loads(line) for line in (folder / "stats.jsonl").read_text().splitlines()]


def losses(folder):
    return [line["loss"] for line in stats(folder)]


def digests(folder):
    """Of every snapshot and of the last weights."""
    found = {i.path.name: i.header.digest for i in list_snapshots(folder)}
    return {**found, "last": read_header(folder / "last.safetensors").digest}


def names(folder):
    """Relative paths of everything in a folder."""
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*")}


def user_module(folder, monkeypatch, name, text):
    """Write a module of a user's, found by its name from now on; names are not used twice."""
    (folder / f"{name}.py").write_text(textwrap.dedent(text))
    monkeypatch.syspath_prepend(folder)
