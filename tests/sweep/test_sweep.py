"""Sweeps: cells and their ledger, rows made once, groups, the loss; killed and started again."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_run import ref

from edm2lite.metrics.rows import CHUNK, Rows
from edm2lite.models.loading import load
from edm2lite.network.unet import UNetConfig
from edm2lite.sweep import Cell, Point, best, best_average, read_csv, write_csv
from edm2lite.sweep.groups import group_of, mixed
from edm2lite.sweep.ledger import Ledger, Result, Setting
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.sweep_ema import main as sweep_ema

SETTING = Setting("fd", "a1b2", {"num_steps": 12})
CELL = Cell(0.1, 1024)
SPREAD = np.zeros((1, 3))


def result(value):
    return Result(value, 6.9, 1e-3, {})


def point(sigma_rel, value, **more):
    return Point(sigma_rel, 1024, value=value, num=100, **more)


def run(*words):
    return CliRunner().invoke(sweep_ema, [str(word) for word in words])


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    weights, stats = folder / "classifier.safetensors", folder / "reference.safetensors"
    for words in (
        ("classifier", "--out", weights),
        ("evaluate", "stats", "digits", "--extractor", "digits", "--weights", weights,
         "--features", "--out", stats),
    ):  # fmt: skip
        assert CliRunner().invoke(edm2lite, [str(word) for word in words]).exit_code == 0
    return stats


def test_ledger_remembers_measurements_under_their_setting(tmp_path):
    ledger = Ledger(tmp_path)
    ledger.add(SETTING, CELL, 3, result(2.0), SPREAD)
    again = Ledger(tmp_path)
    assert again.get(SETTING, CELL, 3) == result(2.0)
    assert again.get(SETTING, CELL, 4) is None
    assert again.get(SETTING, Cell(0.1, 1024, guidance=2.0), 3) is None
    assert again.get(Setting("fd", "a1b2", {"num_steps": 13}), CELL, 3) is None


def test_ledger_survives_a_line_cut_short(tmp_path):
    Ledger(tmp_path).add(SETTING, CELL, 3, result(2.0), SPREAD)
    path = tmp_path / "sweep.jsonl"
    whole = path.read_text()
    for cut in range(1, len(whole) - 1, 3):
        path.write_text(whole + whole[:cut])
        assert Ledger(tmp_path).get(SETTING, CELL, 3) == result(2.0)
        assert path.read_text() == whole


def test_ledger_of_another_version_is_refused(tmp_path):
    (tmp_path / "sweep.jsonl").write_text('{"setting": {}, "point": {}}\n')
    with pytest.raises(ValueError, match="of another; move it away"):
        Ledger(tmp_path)


def test_raw_weights_that_are_better_than_every_average_are_the_best():
    points = [point(None, 1.0), point(0.05, 3.0), point(0.1, 2.0)]
    assert best(points).sigma_rel is None and best_average(points).sigma_rel == 0.1
    few = Point(0.2, 1024, value=0.5, num=10)  # of fewer images, which are not compared
    assert best([*points, few]).value == 1.0 and best_average([*points, few]).value == 2.0


def test_table_survives_its_file(tmp_path):
    points = [point(None, 1.0), point(0.05, 3.123456789, group="output", rest_sigma_rel=0.1)]
    write_csv(tmp_path / "sweep.csv", points)
    assert read_csv(tmp_path / "sweep.csv") == points


def counted(made):
    def make(images):
        made.extend(images)
        rows = torch.tensor([[i, i**2] for i in images], dtype=torch.float32)
        return rows, torch.tensor([i % 256 for i in images], dtype=torch.uint8)[:, None, None, None]

    return make


@pytest.mark.parametrize("world", [1, 2, 3])
def test_rows_are_the_same_by_any_number_of_processes_and_made_once(tmp_path, world):
    made = []
    for num in (100, 100, 700, 300):  # more images, and fewer, and the same
        for rank in reversed(range(world)):  # the first one waits for the others
            Rows(tmp_path, {"a": 1}, rank, world).fill(num, counted(made), lambda count: None)
    assert sorted(made) == list(range(700))
    rows = Rows(tmp_path, {"a": 1})
    assert [len(part) for part in rows.parts(700)] == [CHUNK, CHUNK, 700 - 2 * CHUNK]
    whole = np.concatenate(list(rows.parts(300)))
    np.testing.assert_array_equal(whole, [[i, i**2] for i in range(300)])
    assert rows.images().flatten().tolist() == list(range(40))
    assert not (Rows(tmp_path, {"a": 2}).folder).exists()


def test_every_tensor_has_its_group_and_mixing_moves_that_group_alone(run_dir):
    a, b = (load(f"{run_dir}@sigma_rel={s}") for s in (0.05, 0.2))
    first, second = a.net.state_dict(), b.net.state_dict()
    seen = {group_of(name, UNetConfig.groups) for name in first}
    assert seen == {*UNetConfig.groups, ""} - {"text", "control"}  # it is told none
    assert {n.split(".")[0] for n in first if not group_of(n, UNetConfig.groups)} == {
        "logvar_fourier", "logvar_linear"
    }  # fmt: skip
    for group in UNetConfig.groups:
        model = mixed(a, b, group)
        for name, value in model.net.state_dict().items():
            source = second if group_of(name, UNetConfig.groups) == group else first
            assert torch.equal(value, source[name]), name
        assert model.identity not in (a.identity, b.identity)


def outputs(folder):
    return {
        p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".jsonl" and p.is_file()
    }


@pytest.mark.slow
def test_a_sweep_by_two_processes_is_that_of_one(run_dir, reference, tmp_path):
    words = [run_dir, "--sigma-rel", "0.05,0.2", *ref(reference), "--num", 300, "--steps", 1]
    for world in (1, 2):
        out = tmp_path / str(world)
        command = [sys.executable, "-m", "edm2lite.tools.sweep_ema", *words, "--out", out]
        processes = [
            subprocess.Popen(
                [str(word) for word in command],
                env={**os.environ, "RANK": str(rank), "WORLD_SIZE": str(world)},
                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            )
            for rank in range(world)
        ]  # fmt: skip
        for process in processes:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    assert outputs(tmp_path / "1") == outputs(tmp_path / "2")


@pytest.mark.slow
def test_killed_and_started_again_a_sweep_ends_with_the_same_table(run_dir, reference, tmp_path):
    words = [
        run_dir, "--sigma-rel", "0.05,0.1,0.2", *ref(reference), "--num", 600, "--steps", 2,
    ]  # fmt: skip
    assert run(*words, "--out", tmp_path / "whole").exit_code == 0
    out = tmp_path / "broken"
    command = [sys.executable, "-m", "edm2lite.tools.sweep_ema", *words, "--out", out]
    before = set()
    for files in (1, 3):  # in the middle of the first length, and at the end of it
        process = subprocess.Popen([str(word) for word in command], stderr=subprocess.DEVNULL)
        while len(list(out.glob("features/*/*.safetensors"))) < files and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        kept = {(p, p.stat().st_mtime_ns) for p in out.glob("features/*/*.safetensors")}
        assert before <= kept and len(kept) >= files
        before = kept
    assert run(*words, "--out", out).exit_code == 0
    assert before <= {(p, p.stat().st_mtime_ns) for p in out.glob("features/*/*.safetensors")}
    assert outputs(out) == outputs(tmp_path / "whole")


def test_search_and_more_images_use_what_is_there(run_dir, reference, tmp_path, monkeypatch):
    common = (run_dir, "--search", *ref(reference), "--steps", 1, "--out", tmp_path)
    first = run(*common, "--num", 200)
    assert first.exit_code == 0 and "Searched" in first.output and "a grid of 25" in first.output
    assert run(*common, "--num", 200).stdout == first.stdout
    rows = [json.loads(line) for line in (tmp_path / "sweep.jsonl").read_text().splitlines()]
    assert {row["num"] for row in rows} == {128, 200}
    there = {path.name for path in (tmp_path / "features").iterdir()}
    made = []
    fill = Rows.fill

    def counting(self, num, factory, done):
        def counted(images):
            made.extend((self.folder.name, i) for i in images)
            return factory(images)

        fill(self, num, counted, done)

    monkeypatch.setattr(Rows, "fill", counting)
    lengths = ",".join(str(row["cell"]["sigma_rel"]) for row in rows[:2])
    more = run(
        run_dir, "--sigma-rel", lengths, *ref(reference), "--steps", 1, "--num", 210,
        "--out", tmp_path,
    )  # fmt: skip
    assert more.exit_code == 0
    assert {folder for folder, _ in made} & there
    assert not [i for folder, i in made if folder in there and i < 128]  # the search made these


def test_two_axes_make_a_heat_map_and_groups_a_curve_each(run_dir, reference, tmp_path):
    common = (*ref(reference), "--num", 130, "--steps", 1)
    guide = ("--guide", f"{run_dir}@nimg=640", "--guidance", "1.5", "--guide-sigma-rel", "0.1,0.2")
    heat = run(run_dir, "--sigma-rel", "0.05,0.2", *guide, *common, "--out", tmp_path / "g")
    assert heat.exit_code == 0, heat.output
    assert "EMA length of the guide" in heat.output and len(read_csv(tmp_path / "g/sweep.csv")) == 4
    at = run(
        run_dir, "--sigma-rel", "0.05,0.2", "--at", "640,1280", *common, "--out", tmp_path / "t"
    )
    assert at.exit_code == 0 and {p.nimg for p in read_csv(tmp_path / "t/sweep.csv")} == {640, 1280}
    groups = run(
        run_dir, "--sigma-rel", "0.05,0.2", "--groups", "output,attention", *common,
        "--out", tmp_path / "s",
    )  # fmt: skip
    points = read_csv(tmp_path / "s/sweep.csv")
    assert groups.exit_code == 0 and [p.group for p in points] == ["", "output", "attention"]
    assert points[1].rest_sigma_rel == points[0].sigma_rel != points[1].sigma_rel


def test_loss_sweep_tells_lengths_apart_without_images(run_dir, tmp_path):
    words = (run_dir, "--sigma-rel", "0.05:0.25:0.05", "--metric", "loss", "--data", "digits")
    done = run(*words, "--num", 300, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    points = [p for p in read_csv(tmp_path / "sweep.csv") if p.sigma_rel]
    assert len(points) == 5 and all(p.low < p.value < p.high for p in points)
    entry = json.loads((tmp_path / "sweep.jsonl").read_text().splitlines()[0])
    assert entry["result"]["details"].keys() >= {"0.02", "5"}
    levels = entry["result"]["details"].values()
    assert entry["result"]["value"] == pytest.approx(np.mean(list(levels)), rel=1e-12)


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["--search", "--sigma-rel", "0.1"],
            "one of --sigma-rel, --decay and --search must be given",
        ),
        (["--sigma-rel", "0.1", "--metric", "loss"], "--metric loss takes --data"),
        (
            ["--sigma-rel", "0.1", "--guidance", "1,2"],
            "a weight of --guidance other than 1 go together",
        ),
        (["--sigma-rel", "0.1", "--groups", "x"], "groups are embedding"),
        (["--sigma-rel", "0.1", "--at", "7"], "none is at nimg = 7"),
        (["--sigma-rel", "0.1", "--metric", "fd_dinov2"], "fid is the distance in such features"),
        (["--sigma-rel", "0.1", "--metric", "prc"], "give one of precision, recall"),
        (["--sigma-rel", "0.1", "--metric", "nope"], "metric must be one of fid, fd_dinov2, kid"),
        (["--sigma-rel", "0.1", "--metric", "nope:X"], "there is no module nope"),
        (["--sigma-rel", "0.1", "--at", "640,1280", "--groups", "all"], "for none with --search"),
    ],
)
def test_mistakes_are_explained_before_anything_is_written(
    run_dir, reference, tmp_path, words, message
):
    given = [] if "loss" in words else ref(reference)
    done = run(run_dir, *words, *given, "--num", 130, "--steps", 1, "--out", tmp_path / "x")
    assert done.exit_code and message in " ".join(done.output.split())
    assert not (tmp_path / "x").exists()


def test_a_reference_of_other_images_is_refused(run_dir, reference, tmp_path):
    from dataclasses import replace

    from edm2lite.metrics.feature_stats import FeatureStats

    other = replace(FeatureStats.load(reference), image_shape=(3, 64, 64))
    other.save(tmp_path / "other.safetensors")
    done = run(
        run_dir, "--sigma-rel", 0.1, "--ref", tmp_path / "other.safetensors", "--num", 130,
        "--weights", reference.with_name("classifier.safetensors"), "--steps", 1,
        "--out", tmp_path / "x",
    )  # fmt: skip
    assert done.exit_code == 1 and "3x64x64" in done.output and "1x8x8" in done.output
