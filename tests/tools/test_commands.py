"""The commands as a person types them: help, results, mistakes, interruption."""

import json
import math
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from metrics.torch_fidelity_oracle import theirs
from PIL import Image
from tiny_run import ref

from edm2lite.dataset import open_dataset
from edm2lite.ema import PowerFunctionEMA, list_snapshots
from edm2lite.metrics.extractors import open_extractor
from edm2lite.tensorfile import load_tensors, read_header, save_tensors
from edm2lite.tools.edm2lite import COMMANDS
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.tools.sweep_ema import main as sweep_ema
from edm2lite.training.__main__ import main as training


def run(command, *arguments):
    return CliRunner().invoke(command, [str(a) for a in arguments])


def succeed(command, *arguments):
    result = run(command, *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def fail(command, *arguments, code=1):
    result = run(command, *arguments)
    assert result.exit_code == code, result.output
    line = result.output.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    return line


@pytest.mark.parametrize(
    "command, arguments",
    [(training, ()), (reconstruct_ema, ()), (sweep_ema, ()), (edm2lite, ())]
    + [(edm2lite, ("evaluate", "stats")), (edm2lite, ("evaluate", "score"))]
    + [(edm2lite, (name,)) for name in COMMANDS],
)
def test_every_command_has_help(command, arguments):
    output = succeed(command, *arguments, "--help")
    assert "Usage:" in output and "--help" in output


def test_version():
    assert version("edm2lite") in succeed(edm2lite, "--version")  # what the package states


def test_reconstruction_writes_lengths_and_keeps_what_is_current(run_dir, tmp_path):
    out = tmp_path / "ema"
    first = succeed(reconstruct_ema, run_dir, "--sigma-rel", "0.05,0.1:0.2:0.05", "--out", out)
    names = sorted(p.name for p in out.iterdir())
    assert names == [f"ema-{s:.5f}-0000001280.safetensors" for s in (0.05, 0.1, 0.15, 0.2)]
    assert all(name in first for name in names)
    times = {p: p.stat().st_mtime_ns for p in out.iterdir()}
    (out / names[0]).write_bytes((out / names[0]).read_bytes()[:-8])
    succeed(reconstruct_ema, run_dir, "--sigma-rel", "0.05,0.1:0.2:0.05", "--out", out)
    changed = [p.name for p in out.iterdir() if p.stat().st_mtime_ns != times[p]]
    assert changed == [names[0]]


def test_reconstruction_takes_exponents_and_types(run_dir, tmp_path):
    output = succeed(
        reconstruct_ema, run_dir, "--gamma", "6.9372", "--at", 640, "--dtype", "float16",
        "--out", tmp_path,
    )  # fmt: skip
    header = read_header(next(tmp_path.iterdir()))
    assert header.metadata["gamma"] == "6.9372" and header.metadata["nimg"] == "640"
    assert str(header.tensors["unet.out_gain"].dtype) == "torch.float16"
    assert "0.1000" in output


def test_results_have_the_type_of_the_snapshots_and_its_rounding_in_their_error(run_dir, tmp_path):
    halves = tmp_path / "halves" / "snapshots"
    halves.mkdir(parents=True)
    for info in list_snapshots(run_dir):
        tensors, metadata = load_tensors(info.path)
        metadata.pop("previous", None)  # other values lie there now
        halved = {name: value.half() for name, value in tensors.items()}
        save_tensors(halves / info.path.name, halved, metadata | {"dtype": "float16"})
    errors = {}
    for kind in ("float16", "float32"):
        given = () if kind == "float16" else ("--dtype", kind)
        out = tmp_path / kind
        arguments = (halves, "--sigma-rel", "0.12", "--out", out, *given)
        succeed(reconstruct_ema, *arguments)
        rows = json.loads(succeed(reconstruct_ema, *arguments, "--json"))
        header = read_header(Path(rows[0]["file"]))
        assert str(header.tensors["unet.out_gain"].dtype) == f"torch.{kind}"
        assert float(header.metadata["predicted_error"]) == rows[0]["predicted_error"]
        errors[kind] = rows[0]["predicted_error"]
    added = math.sqrt(errors["float16"] ** 2 - errors["float32"] ** 2)
    weights = torch.cat([v.flatten() for v in load_tensors(info.path)[0].values()])
    measured = (weights.half().float() - weights).norm() / weights.norm()
    assert added == pytest.approx(measured.item(), rel=0.05)  # of 64 thousand numbers


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--sigma-rel", "0.3"), "between 0 and 0.2887"),
        (("--sigma-rel", "0.1", "--at", "100"), "nearest is 160"),
    ],
)
def test_reconstruction_explains_mistakes(run_dir, arguments, message):
    assert message in fail(reconstruct_ema, run_dir, *arguments)


def test_reconstruction_that_would_be_poor_is_refused_before_anything_is_written(run_dir, tmp_path):
    arguments = (run_dir, "--sigma-rel", "0.002,0.05,0.004", "--out", tmp_path / "ema")
    plan = json.loads(succeed(reconstruct_ema, *arguments, "--dry-run", "--json"))
    limit = (plan[2]["predicted_error"] + plan[1]["predicted_error"]) / 2
    assert [row["sigma_rel"] for row in plan] == [0.002, 0.05, 0.004]
    line = fail(reconstruct_ema, *arguments, "--max-error", limit)
    assert f"0.002 ({plan[0]['predicted_error']:.1e}), 0.004 (" in line and "--max-error" in line
    assert "0.05 (" not in line and not (tmp_path / "ema").exists()
    table = succeed(reconstruct_ema, *arguments, "--max-error", limit, "--dry-run")
    assert [line.endswith("above --max-error") for line in table.splitlines()[1:]] == [1, 0, 1]
    succeed(reconstruct_ema, *arguments, "--max-error", 1)
    assert len(list((tmp_path / "ema").iterdir())) == 3


def test_reconstruction_is_verified(run_dir, tmp_path):
    output = run(
        reconstruct_ema, run_dir, "--sigma-rel", "0.07,0.1,0.2", "--solver", "paper", "--json",
        "--max-error", 1, "--out", tmp_path,
    )  # fmt: skip
    for row in json.loads(output.stdout):
        assert "as rebuilt" in succeed(reconstruct_ema, run_dir, "--verify", row["file"])
        assert read_header(row["file"]).metadata["solver"] == "paper"
    assert "reconstruct_ema wrote" in fail(
        reconstruct_ema, run_dir, "--verify", run_dir / "last.safetensors"
    )


def test_snapshots_are_described_and_faults_fail(run_dir, tmp_path):
    output = succeed(edm2lite, "snapshots", run_dir)
    assert output.count(" ok ") == 16 and "Predicted errors at nimg = 1280" in output
    last = run(edm2lite, "snapshots", run_dir, "--quick").stdout.splitlines()[-1]
    assert last == "16 files, all intact (by their headers)"
    shutil.copytree(run_dir / "snapshots", tmp_path / "s")
    victim = sorted((tmp_path / "s").iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-100])
    result = run(edm2lite, "snapshots", tmp_path / "s", "--quick")
    assert result.exit_code == 1 and f"truncated: {victim}" in result.stdout
    assert "to the predicted error of EMA length" in result.stdout
    assert "all intact" not in result.output
    assert "Error: 1 problem found in " in result.output
    line = fail(edm2lite, "snapshots", tmp_path / "s", "--thin", "--max-error", 1)
    assert "every file is intact" in line and victim.name in line


def test_a_long_list_of_snapshots_is_shortened_around_what_has_a_problem(tmp_path):
    weights = {"w": torch.zeros(4)}
    ema = PowerFunctionEMA(weights, folder=tmp_path)
    for step in range(1, 31):
        weights["w"] += torch.randn(4)
        ema.update(64 * step)
        ema.save_snapshots()
    ema.release()
    output = run(edm2lite, "snapshots", tmp_path).stdout
    names = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(names) == 60 and sum(name in output for name in names) == 8
    lines = output.splitlines()
    assert "52 more are ok; -v lists them" in lines
    assert lines[-1] == "60 files, all intact (in every byte)"
    assert all(name in succeed(edm2lite, "snapshots", tmp_path, "-v") for name in names)
    victim = tmp_path / names[31]
    victim.write_bytes(victim.read_bytes()[:-5] + b"wrong")
    result = run(edm2lite, "snapshots", tmp_path)
    listed = [name for name in names if name in result.stdout]
    assert result.exit_code == 1 and victim.name in listed and 9 <= len(listed) <= 10


def test_thinning_is_a_list_until_applied(run_dir, tmp_path):
    folder = shutil.copytree(run_dir / "snapshots", tmp_path / "s")
    thin = ("snapshots", folder, "--range", "0.05:0.2", "--thin", "--max-error", 0.1)
    listed = run(edm2lite, *thin).stdout
    names = {p.name for p in folder.iterdir()}
    removable = {n for n in names if n in listed}
    assert len(names) == 16 and removable and "--apply would free " in listed
    freed = sum((folder / n).stat().st_size for n in removable)
    assert f"{freed} bytes freed" in succeed(edm2lite, *thin, "--apply")
    assert {p.name for p in folder.glob("*.safetensors")} == names - removable
    assert f"{len(removable)} more were deleted" in succeed(edm2lite, "snapshots", folder)
    assert "--thin" in fail(edm2lite, "snapshots", folder, "--apply", code=2)
    assert "low:high" in fail(edm2lite, "snapshots", folder, "--range", "0.3", code=2)


def test_plan_marks_the_cheapest_choice(tmp_path):
    common = ("plan", "--duration", "64Mi", "--params", "1.5M", "--range", "0.03:0.2")
    lines = succeed(
        edm2lite, *common, "--sigma-rels", "0.05,0.1", "--max-error", 0.003
    ).splitlines()
    rows = [line.split() for line in lines if line.startswith("0.05,0.1")]
    assert len(rows) == 8 and rows[0][1:5] == ["4Mi", "float16", "32", "0.1"]
    marked = [row for row in rows if row[-1] == "cheapest"]
    sizes = [float(row[4]) for row in rows if float(row[5]) < 0.003]
    assert len(marked) == 1 and float(marked[0][4]) == min(sizes)
    one = run(edm2lite, *common, "--every", "8Mi", "--dtype", "bfloat16", "--sigma-rels", 0.1)
    assert one.stdout.splitlines()[1].split()[:5] == ["0.1", "8Mi", "bfloat16", "8", "0.0"]
    assert "none of these does" in fail(edm2lite, *common, "--every", "32Mi", "--max-error", 1e-9)
    assert "must be a whole number" in fail(
        edm2lite, "plan", "--duration", "1Mi", "--params", "big", code=2
    )


def test_reconstruction_usage_errors(run_dir, tmp_path):
    assert "one of" in fail(reconstruct_ema, run_dir, code=2)
    assert "start:end:step" in fail(reconstruct_ema, run_dir, "--sigma-rel", "a", code=2)
    assert "no EMA snapshot" in fail(reconstruct_ema, tmp_path, "--gamma", 3)


def test_training_explains_mistakes(run_dir, tmp_path):
    out = ("--out", tmp_path / "x")
    assert "nearest known one is seed" in fail(training, "digits", *out, "--set", "sed=1")
    assert "edm2lite config lists those shipped" in fail(training, "nothing", *out)
    assert "--set data.source=VALUE" in fail(training, "cifar10", *out)
    line = fail(training, "digits", "--out", run_dir)
    assert "belongs to a run of another configuration" in line
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Classifier and reference statistics, made by the commands."""
    folder = tmp_path_factory.mktemp("reference")
    weights, stats = folder / "classifier.safetensors", folder / "reference.safetensors"
    assert "right" in succeed(edm2lite, "classifier", "--out", weights)
    assert "already" in succeed(edm2lite, "classifier", "--out", weights)
    output = succeed(
        edm2lite, "evaluate", "stats", "digits", "--extractor", "digits", "--weights", weights,
        "--out", stats,
    )  # fmt: skip
    assert "1797 images, 64 features" in output
    return stats


def test_sweep_fills_its_ledger_once(run_dir, reference, tmp_path, monkeypatch):
    common = (*ref(reference), "--num", 80, "--steps", 2, "--out", tmp_path)
    first = succeed(sweep_ema, run_dir, "--sigma-rel", "0.05,0.1", *common)
    assert "best" in first and "raw" in first
    made = {p.name for p in tmp_path.iterdir() if p.is_file()}
    assert made == {"sweep.jsonl", "sweep.csv", "sweep.png", "sweep.md", "sweep.html"}
    before = (tmp_path / "sweep.jsonl").read_text()
    succeed(sweep_ema, run_dir, "--sigma-rel", "0.05,0.1,0.2", *common)
    after = (tmp_path / "sweep.jsonl").read_text()
    assert after.startswith(before) and len(after.splitlines()) == 4
    monkeypatch.setattr("edm2lite.metrics.rows.Rows.fill", None)  # must not be called
    picture = (tmp_path / "sweep.png").read_bytes()
    succeed(sweep_ema, run_dir, "--sigma-rel", "0.05,0.1,0.2", *common)
    assert (tmp_path / "sweep.png").read_bytes() == picture


def test_distance_of_a_folder(run_dir, reference, tmp_path):
    succeed(
        edm2lite, "generate", run_dir, "--seeds", "0-129", "--steps", 2, "--out", tmp_path / "a"
    )
    result = run(edm2lite, "evaluate", tmp_path / "a", *ref(reference))
    name, value, low, _, high, *of = result.stdout.splitlines()[1].split()
    assert " ".join(of) == f"130 images of {tmp_path / 'a'}"
    assert result.exit_code == 0 and name == "fd(digits)"
    assert float(low) < float(value) < float(high)
    images, real = (
        torch.from_numpy(d.images(range(len(d))))
        for d in map(open_dataset, (tmp_path / "a", "digits"))
    )
    extractor = open_extractor("digits", reference.parent / "classifier.safetensors")
    expected = theirs(images, real, extractor, fid=True)["frechet_inception_distance"]
    assert float(value) == pytest.approx(expected, rel=1e-4)


def test_a_weights_file_that_only_the_reference_names_is_not_opened(run_dir, reference, tmp_path):
    words = (run_dir, "--sigma-rel", 0.1, "--num", 2, "--out", tmp_path / "x")
    line = fail(sweep_ema, *words, "--ref", reference)
    assert f"add --weights {reference.parent / 'classifier.safetensors'}" in line
    line = fail(sweep_ema, *words, "--ref", reference, "--weights", tmp_path / "gone")
    assert f"no extractor weights at {tmp_path / 'gone'}" in line
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    "missing, command, arguments",
    [
        ("sklearn", training, ("digits", "--out", "OUT")),
        ("torch_fidelity", edm2lite, ("evaluate", "stats", "digits", "--out", "OUT/x")),
        ("sklearn", edm2lite, ("classifier", "--out", "OUT/x")),
        ("matplotlib", edm2lite, ("demo", "--out", "OUT")),
    ],
)
def test_missing_extra_is_named(missing, command, arguments, tmp_path, monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # what a missing package looks like
    line = fail(command, *[a.replace("OUT", str(tmp_path / "out")) for a in arguments])
    assert "pip install 'edm2lite[" in line
    assert not (tmp_path / "out").exists()


def test_demo_removes_the_folder_of_a_run_and_nothing_else(tmp_path):
    (tmp_path / "precious").write_text("x")
    line = fail(edm2lite, "demo", "--fresh", "--out", tmp_path)
    assert "has no run.json" in line and (tmp_path / "precious").exists()


def test_magnitudes_of_a_run_are_listed_and_drawn(run_dir, tmp_path):
    picture = tmp_path / "m.png"
    output = succeed(
        edm2lite, "magnitudes", run_dir, "--data", "digits", "--num", 32, "--out", picture
    )
    rows = [line.split() for line in output.splitlines() if "block" in line.split()[0]]
    assert [r[0] for r in rows][:2] == ["unet.enc.8x8_block0", "unet.enc.4x4_block0"]
    assert all(0.1 < float(r[3]) < 10 for r in rows)
    assert "layers and blocks are off by more than 4x" in output
    with Image.open(picture) as image:
        assert image.size[0] > 500
    every = succeed(edm2lite, "magnitudes", run_dir, "--num", 8, "--all", "--limit", 1.01)
    assert "unet.emb_noise" in every and " off" in every
    assert "give a MODEL" in fail(edm2lite, "magnitudes", code=2)
    assert "range x>1" in fail(edm2lite, "magnitudes", run_dir, "--limit", 1, code=2)


def test_cost_of_a_model(run_dir):
    assert len(succeed(edm2lite, "magnitudes", run_dir, "--flops").splitlines()) == 2
