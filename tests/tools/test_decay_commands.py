"""Decays on the command line and as names of models."""

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from edm2lite import load
from edm2lite.ema import plan_targets, reconstruct
from edm2lite.sweep.cells import Cell, Point, read_csv
from edm2lite.sweep.ledger import Ledger, Result, Setting, key_of
from edm2lite.tensorfile import read_header
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.tools.sweep_ema import main as sweep_ema

DECAYS = "linear:0.5,cosine:0.5,(1-s)^2:50%,power:3:640"


def run(command, *words, code=0):
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == code, result.output
    return result


def test_decays_are_rebuilt_by_name(run_dir, tmp_path):
    words = (run_dir, "--decay", DECAYS, "--out", tmp_path, "--max-error", 0.5)
    shown = run(reconstruct_ema, *words)
    assert "rate halves" in shown.output and "square:0.5" in shown.output
    names = sorted(path.name for path in tmp_path.iterdir())
    ends = ("cosine-0.5", "linear-0.5", "power-3-640", "square-0.5")
    assert names == [f"decay-{name}-0000001280.safetensors" for name in ends]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    rows = json.loads(run(reconstruct_ema, *words, "--json").stdout)
    assert before == {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert [row["decay"] for row in rows] == [
        "linear:0.5",
        "cosine:0.5",
        "square:0.5",
        "power:3:640",
    ]
    assert rows[1]["sigma_rel"] is None and rows[1]["linear_decay"] is not None
    header = read_header(tmp_path / names[0])
    assert header.metadata["decay"] == "cosine:0.5" and "sigma_rel" not in header.metadata
    check = run(reconstruct_ema, run_dir, "--verify", tmp_path / names[0])
    assert "as rebuilt from" in check.output


def test_a_decay_is_the_name_of_a_model(run_dir, tmp_path):
    model = load(f"{run_dir}@decay=cosine:50%,max_error=0.5")
    (result,) = reconstruct(run_dir, decay=["cosine:0.5"], max_error=0.5)
    for name, value in model.net.state_dict().items():
        assert torch.equal(value, result.state_dict[name])
    assert model.short_name == "decay=cosine-50%,max_error=0.5"
    out = tmp_path / "images"
    run(edm2lite, "generate", model.name, "--seeds", "0-1", "--steps", 2, "--out", out)
    assert len(list(out.rglob("*.png"))) == 2
    for name, message in (
        ("decay=cosine", "and its length"),
        ("decay=liner:0.2", "must be one of linear"),
        ("decay=cosine:0.2,sigma_rel=0.1", "one of sigma_rel, gamma and decay"),
        ("decay=1-sqrt:0.01,max_error=1e-9", "above 1e-09"),
    ):
        with pytest.raises(ValueError, match=message):
            load(f"{run_dir}@{name}")


def test_recorded_rates_are_what_decays_are_measured_against(run_dir, tmp_path):
    """The small run has a constant rate; a copy says otherwise."""
    (plan,) = plan_targets(run_dir, decay="linear:0.5")
    assert repr(plan.profile).startswith("Decay(")
    copy = tmp_path / "copy"
    shutil.copytree(run_dir / "snapshots", copy / "snapshots")
    lines = [json.dumps({"nimg": n, "lr": lr}) for n, lr in ((640, 0.1), (1280, 0.05))]
    (copy / "stats.jsonl").write_text("\n".join(lines))
    for source in (copy, copy / "snapshots"):
        (plan,) = plan_targets(source, decay="linear:0.5")
        assert repr(plan.profile).startswith("RateDecay(")
        assert "2 records" in plan.metadata["profile"]
        assert plan.profile.multiplier(960) == pytest.approx(0.5 * 0.1 / 0.075)
    (plan,) = plan_targets(copy, decay="linear:0.5", lr_log="none")
    assert repr(plan.profile).startswith("Decay(")
    log = tmp_path / "lr.csv"
    log.write_text("nimg,lr\n0,0.01\n640,0.01\n1280,0.005\n")
    words = (run_dir, "--decay", "cosine:0.5", "--max-error", 0.5, "--dry-run", "--lr-log")
    rows = [
        json.loads(run(reconstruct_ema, *words, given, "--json").stdout)[0]["budget"]
        for given in ("none", log)
    ]
    assert rows[0] == pytest.approx(0.75) and rows[1] > 0.78
    log.write_text("nimg,lr\n0,0.01\n900,0.0\n1280,0.0\n")
    failed = run(reconstruct_ema, *words, log, code=1)
    assert failed.output.count("\n") == 1 and "must not be 0 within the decay" in failed.output
    failed = run(reconstruct_ema, *words, tmp_path / "none.csv", code=1)
    assert "no learning rates at" in failed.output


@pytest.mark.parametrize(
    "words, message, code",
    [
        (("--decay", "linear"), "length of a decay", 2),
        (("--decay", "linear:0.5", "--sigma-rel", "0.1"), "one of --sigma-rel", 2),
        (("--sigma-rel", "0.1", "--lr-log", "none"), "--lr-log belongs to --decay", 2),
        (("--decay", "linear:4Mi"), "begin within the run", 1),
        (("--decay", "1-sqrt:0.5", "--solver", "paper"), "must be calibrated", 1),
        (("--decay", "1-sqrt:0.1", "--max-error", "1e-9"), "those of decay 1-sqrt:0.1", 1),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(run_dir, tmp_path, words, message, code):
    out = tmp_path / "out"
    failed = run(reconstruct_ema, run_dir, *words, "--out", out, code=code)
    assert message in failed.output.strip().splitlines()[-1] and not out.exists()


def test_decays_are_swept(run_dir, tmp_path):
    words = (run_dir, "--metric", "loss", "--data", "digits", "--num", 32, "--max-error", 0.5)
    decays = ("--decay", "linear:0.25:0.50:0.25,cosine:0.5")
    shown = run(sweep_ema, *words, *decays, "--out", tmp_path)
    assert "Best: decay " in shown.stdout and "EMA length" not in shown.stdout
    points = read_csv(tmp_path / "sweep.csv")
    names = ["linear:0.25", "linear:0.5", "cosine:0.5"]
    assert [p.decay for p in points] == ["", *names] and points[0].is_raw
    assert all(p.sigma_rel is None for p in points)
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 500
    for name in ("sweep.md", "sweep.html"):
        assert all(decay in (tmp_path / name).read_text() for decay in names)
    ledger = (tmp_path / "sweep.jsonl").read_text()
    run(sweep_ema, *words, *decays, "--out", tmp_path)
    assert (tmp_path / "sweep.jsonl").read_text() == ledger  # measured once
    two = run(sweep_ema, *words, *decays, "--at", "640,1280", "--out", tmp_path)
    assert "Best: decay " in two.stdout and "training images" in two.stdout
    failed = run(sweep_ema, *words, *decays, "--sigma-rel", 0.1, "--out", tmp_path, code=2)
    assert "one of --sigma-rel, --decay and --search" in failed.output


def test_what_was_measured_before_there_were_decays_is_still_known(tmp_path):
    setting, cell = Setting("loss", "run", {}), Cell(0.1, 1280)
    assert "decay" not in key_of(setting, cell, 64)
    ledger = Ledger(tmp_path)
    ledger.add(setting, cell, 64, Result(1.5, 6.9, 0.0, {}), None)
    ledger.add(setting, Cell(None, 1280, decay="linear:0.2"), 64, Result(1.2, None, 0.0, {}), None)
    text = (tmp_path / "sweep.jsonl").read_text().splitlines()
    assert "decay" not in text[0] and '"decay": "linear:0.2"' in text[1]
    again = Ledger(tmp_path)
    assert again.get(setting, cell, 64).value == 1.5
    assert again.get(setting, Cell(None, 1280, decay="linear:0.2"), 64).value == 1.2
    assert Point(None, 1280, decay="linear:0.2").cell.decay == "linear:0.2"


def test_schedules_are_shown_and_drawn(tmp_path):
    words = ("ema-units", "--cooldown", "linear:0.2,cosine:128Ki", "--at", "1Mi", "--anytime", 0.05)
    picture = tmp_path / "schedules.png"
    shown = run(edm2lite, *words, "--schedule", "--schedule-free", 4, "--schedule-free-c", 5)
    header, *rows = shown.stdout.splitlines()
    assert header.split()[:4] == ["sigma_rel", "rate", "halves", "budget"] and len(rows) == 5
    assert rows[0].split()[3] == "20.0%" and rows[1].split()[4] == "12.5%"
    assert rows[3] == rows[4]
    (one,) = json.loads(run(edm2lite, "ema-units", "--sigma-rel", 0.1, "--json").stdout)
    assert one["budget"] == pytest.approx(0.888, abs=5e-4)
    assert one["halves_at"] == pytest.approx(0.916, abs=5e-4)
    run(edm2lite, *words, "--plot", picture)
    with Image.open(picture) as image:
        assert image.width > 1200
    failed = run(edm2lite, "ema-units", "--cooldown", "linear:4Mi", code=1)
    assert "depends on the training time" in failed.output


def test_storage_is_planned_for_decays():
    words = (
        "plan",
        "--duration",
        "16Mi",
        "--params",
        "1M",
        "--every",
        "512Ki",
        "--dtype",
        "float32",
    )
    shown = run(edm2lite, *words, "--sigma-rels", "0.05,0.10", "--decay", "linear:0.2,1-sqrt:0.2")
    assert "at decay" in shown.stdout and "1-sqrt:0.2" in shown.stdout


def test_damaged_records_of_a_run_are_no_rates(run_dir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run_dir, copy)
    (copy / "stats.jsonl").write_bytes(b"\xff\x00{\n[1]\n")
    (plan,) = plan_targets(copy, decay="linear:1.0")
    assert repr(plan.profile).startswith("Decay(")
