"""Outputs of commands: one process at a time writes them, and nothing of its claim stays."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from edm2lite.ema import PowerFunctionEMA
from edm2lite.metrics.rows import Rows
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.tools.sweep_ema import main as sweep_ema

HOLDER = """
import sys
from pathlib import Path
from edm2lite.claim import claim_file, claim_folder
claims = []
for line in sys.stdin:
    kind, path = line.split()
    claims.append({"folder": claim_folder, "file": claim_file}[kind](Path(path)))
    print("held", flush=True)
"""
# command: what claims, where the work begins, and arguments. Models and data sets need not exist:
# they are opened after the claim.
COMMANDS = {
    "generate": ("folder images", "sampling.generation.image_generator", "no_model --out images"),
    "generate zip": ("file a.zip", "sampling.generation.image_generator", "no_model --out a.zip"),
    "generate both": ("folder b", "sampling.generation.image_generator", "no_model other --out b"),
    "import edm2": ("file new/snapshots", "interop.edm2._convert", "edm2 --out new"),
    "import ema-pytorch": (
        "file new/snapshots",
        "interop.ema_pytorch._convert",
        "theirs --out new --sigma-rel 0.1 --update-every 1",
    ),
    "dataset convert": ("file d", "dataset.open_collection", "no_images d"),
    "dataset convert zip": ("file d.zip", "dataset.open_collection", "no_images d.zip"),
    "dataset encode": ("folder latents", "dataset.open_dataset", "no_images latents --vae no_vae"),
    "evaluate stats": ("file s", "metrics.reference.images_of", "no_images --out s"),
    "reconstruct_ema": ("folder ema", "ema.building.build", "run --sigma-rel 0.1 --out ema"),
    "sweep_ema": (
        "file sweep/sweep.jsonl",
        "sweep.driver.plan_targets",
        "no_run --sigma-rel 0.1 --ref r --out sweep",
    ),
    "snapshots": (
        "file run/snapshots/thinned.jsonl",
        "ema.doctor.examine",
        "run --thin --max-error 0.1 --apply",
    ),
    "export": ("folder e", "sweep.publish.read_metadata", "no_model --license mit --out e"),
    "adapters merge": ("file m", "models.loading.load", "no_model --adapter a --out m"),
    "adapters import": ("file i", "models.loading.load", "no_file --base no_model --out i"),
    "adapters export": ("file x", "models.loading.load", "no_model --adapter a --to peft --out x"),
    "adapters factorize": ("file f", "models.loading.load_adapter", "a --rank 2 --out f"),
    "demo": ("file demo", "tools.demo._run", "--out demo"),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The current folder, with what commands look at before they claim anything."""
    monkeypatch.chdir(tmp_path)
    for name in ("edm2/net-0001024-0.050.pkl", "theirs/0.10.pt"):
        Path(name).parent.mkdir()
        Path(name).touch()
    ema = PowerFunctionEMA({"w": torch.ones(3)})
    for nimg in (64, 128):
        ema.update(nimg)
        ema.save_snapshots("run/snapshots")
    return tmp_path


@pytest.fixture(scope="module")
def other():
    """Another process that claims what it is told to, until the tests have ended."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        yield process
        process.kill()


def hold(other, kind, path):
    other.stdin.write(f"{kind} {path.absolute()}\n")
    other.stdin.flush()
    assert other.stdout.readline() == "held\n"


def run(name, words):
    command = {"reconstruct_ema": reconstruct_ema, "sweep_ema": sweep_ema}.get(name, edm2lite)
    before = [] if command is not edm2lite else name.removesuffix(" zip").split()
    before = [word for word in before if word not in ("edm2", "ema-pytorch", "both")]
    return CliRunner().invoke(command, [*before, *words.split()])


def contents(folder):
    return {p: p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_process_is_refused_in_one_line_and_changes_nothing(name, other, place):
    output, _, words = COMMANDS[name]
    kind, path = output.split()
    hold(other, kind, place / path)
    before = contents(place)
    result = run(name, words)
    assert result.exit_code == 1, result.output
    (line,) = result.output.splitlines()
    assert line.startswith(f"Error: {path} must be written by one process at a time, process ")
    assert f"process {other.pid} on " in line and "; wait for it to end" in line
    assert contents(place) == before


@pytest.mark.parametrize("error, code", [(KeyboardInterrupt, 130), (ValueError, 1)])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_left_where_the_work_fails(name, error, code, place, monkeypatch):
    output, begin, words = COMMANDS[name]
    kind, path = output.split()
    whole = place / path
    lock = whole / ".lock" if kind == "folder" else whole.with_name(f".{whole.name}.lock")
    seen = []

    def fail(*args, **kwargs):
        seen.append(lock.exists())
        raise error("what went wrong")

    monkeypatch.setattr(f"edm2lite.{begin}", fail)
    before = contents(place)
    result = run(name, words)
    assert result.exit_code == code, result.output
    assert seen == [True] and contents(place) == before


def test_reading_needs_no_claim(other, place, squares):
    with zipfile.ZipFile(squares) as archive:
        archive.extractall(place / "images")
    shutil.copy(squares, place / "images.zip")
    for output in ("folder run/snapshots", "folder run/ema", "folder images", "file images.zip"):
        kind, path = output.split()
        hold(other, kind, place / path)
    hold(other, "file", place / "run/snapshots/thinned.jsonl")
    before = contents(place)
    for name, words in (
        ("reconstruct_ema", "run --sigma-rel 0.1 --dry-run"),
        ("snapshots", "run --quick"),
        ("dataset info", "images"),
        ("dataset verify", "images"),
        ("dataset verify zip", "images.zip"),
    ):
        result = run(name, words)
        assert result.exit_code == 0, result.output
        assert ".lock" not in result.output
    assert contents(place) == before


def test_rows_are_made_by_one_command_and_read_by_all(other, tmp_path):
    """Two evaluations with one cache: else the one of fewer images cuts the other's rows short."""
    rows = Rows(tmp_path, {"what": "squares"})

    def make(images):
        return torch.tensor([[float(i * i)] for i in images]), None

    rows.fill(3, make)
    hold(other, "folder", rows.folder)
    rows.fill(2, make)
    with pytest.raises(ValueError, match=f"one process at a time, process {other.pid}"):
        rows.fill(4, make)
    assert [part.tolist() for part in rows.parts(3)] == [[[0.0], [1.0], [4.0]]]
