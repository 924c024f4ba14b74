"""What a sweep leaves in its folder, and what it refuses before it measures anything."""

import importlib.util
import json
import re

import pytest
from click.testing import CliRunner
from tiny_run import ref

from edm2lite.metrics import statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.sampling import Sampling
from edm2lite.sweep import read_csv, sweep_ema
from edm2lite.tools.sweep_ema import main as sweep_command

FEW = Sampling(num_steps=1)

OWN = """
from edm2lite.metrics import ImageMetric, Measurement

class Light(ImageMetric):
    label = "light"

    def rows(self, images, conditioning):
        return images.float().mean(dim=(1, 2, 3))[:, None].numpy()

    def measure(self, rows):
        return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)

class Glare(Light):
    def rows(self, images, conditioning):
        return (super().rows(images, conditioning) / 100) ** 30

class Dark(Light):
    label = "dark"
    lower_is_better = False
"""


@pytest.fixture
def own_metrics(tmp_path, monkeypatch):
    (tmp_path / "own_folder_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    weights = folder / "classifier.safetensors"
    train_classifier(weights, num_epochs=1)
    stats = statistics("digits", "digits", weights=weights)
    return stats.save(folder / "reference.safetensors")


def invoke(*words):
    return CliRunner().invoke(sweep_command, [str(word) for word in words])


def loss(run_dir, out, *words):
    return invoke(
        run_dir, "--metric", "loss", "--data", "digits", "--num", 64, "--out", out, *words
    )


def test_lengths_that_the_snapshots_cannot_give_are_refused_before_any_image(run_dir, tmp_path):
    for words, named in (
        (("--sigma-rel", "0.1,0.2"), "sigma_rel 0.1 "),
        (("--search",), "sigma_rel 0.02 "),
    ):
        done = loss(run_dir, tmp_path / "x", *words, "--max-error", "1e-12")
        line = done.output.strip().splitlines()[-1]
        assert done.exit_code == 1 and line.startswith("Error: predicted errors must be at most")
        assert named in line and "--max-error" in line and not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="predicted errors must be at most 1e-12"):
        sweep_ema(run_dir, [0.1], metric="loss", data="digits", num=64, max_error=1e-12,
                  out=tmp_path / "x")  # fmt: skip
    assert loss(run_dir, tmp_path / "y", "--sigma-rel", "0.1", "--max-error", "0.5").exit_code == 0


def test_sweeps_of_two_metrics_in_one_folder_keep_each_others_pages(run_dir, reference, tmp_path):
    assert loss(run_dir, tmp_path, "--sigma-rel", "0.1,0.2").exit_code == 0
    kept = {p.name: p.read_bytes() for p in tmp_path.glob("sweep.*") if p.suffix != ".jsonl"}
    assert kept.keys() == {"sweep.csv", "sweep.md", "sweep.html", "sweep.png"}
    words = (run_dir, "--sigma-rel", "0.1,0.2", *ref(reference), "--num", 70, "--steps", 1)
    done = invoke(*words, "--out", tmp_path)
    assert done.exit_code == 0 and done.stdout.splitlines()[-1].endswith("sweep-fd-digits.html")
    infinity = invoke(*words, "--out", tmp_path, "--metric", "fid_infinity")
    assert infinity.exit_code == 0 and "FD-infinity" in infinity.stdout, infinity.output
    assert {p.name: p.read_bytes() for p in tmp_path.glob("sweep.*") if p.name in kept} == kept
    for name in ("sweep-fd-digits", "sweep-fd_infinity-digits"):
        for suffix in ("csv", "md", "html", "png"):
            assert (tmp_path / f"{name}.{suffix}").is_file()
        assert f"({name}.png)" in (tmp_path / f"{name}.md").read_text()
    assert loss(run_dir, tmp_path, "--sigma-rel", "0.1,0.2").exit_code == 0  # it is the first's
    assert (tmp_path / "sweep.csv").read_bytes() == kept["sweep.csv"]


def test_a_distance_in_other_features_says_which(run_dir, reference, tmp_path):
    done = invoke(run_dir, "--sigma-rel", "0.1", *ref(reference), "--num", 70, "--steps", 1,
                  "--out", tmp_path)  # fmt: skip
    assert done.exit_code == 0 and "FID" not in done.stdout and "FD" in done.stdout
    assert "reference.safetensors (digits)" in (tmp_path / "sweep.md").read_text()
    entry = json.loads((tmp_path / "sweep.jsonl").read_text().splitlines()[0])
    assert entry["setting"]["metric"] == "fd"  # as earlier versions wrote it


@pytest.mark.usefixtures("own_metrics")
def test_raw_weights_can_win_a_sweep(run_dir, tmp_path):
    """Averages lie between the first and the last weights: raw ones are an extreme of something."""
    sweeps = [
        sweep_ema(run_dir, [0.2, 0.25], metric=f"own_folder_metrics:{name}", num=40, sampling=FEW,
                  out=tmp_path / name)
        for name in ("Light", "Dark")
    ]  # fmt: skip
    won = [s for s in sweeps if s.best.sigma_rel is None]
    assert won, [(p.sigma_rel, p.value) for p in sweeps[0].points]
    page = won[0].write()
    assert won[0].words.startswith("The raw weights scored best: ")
    assert won[0].best in won[0].alike and won[0].best_average.sigma_rel is not None
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.read_text(), re.S)[1])
    assert data["axes"][0]["values"][0] is None and data["axes"][0]["names"][0] == "raw"
    assert data["best"] == [0] and data["points"][0]["image"]
    assert "| raw | " in won[0].table() and won[0].table().count("**best**") == 1


@pytest.mark.usefixtures("own_metrics")
def test_a_sweep_says_where_a_few_images_decide_its_intervals(run_dir, tmp_path):
    words = {}
    for name in ("Light", "Glare"):
        sweep = sweep_ema(run_dir, [0.2], metric=f"own_folder_metrics:{name}", num=120,
                          sampling=FEW, out=tmp_path / name)  # fmt: skip
        words[name] = sweep.words
    assert "A few images decide the interval" in words["Glare"]
    assert "A few images" not in words["Light"]


def test_a_search_compares_its_best_length_with_the_raw_weights(run_dir, tmp_path):
    sweep = sweep_ema(run_dir, search=True, metric="loss", data="digits", num=32, out=tmp_path)
    raw = [p for p in sweep.points if p.sigma_rel is None]
    assert len(raw) == 1 and raw[0].num == 32 and raw[0] in sweep.compared


def test_a_sweep_without_matplotlib_says_so_first_and_prints_its_table(
    run_dir, tmp_path, monkeypatch
):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name)
    )
    done = loss(run_dir, tmp_path, "--sigma-rel", "0.1,0.2")
    assert done.exit_code == 0 and "Best EMA length" in done.stdout
    assert done.stderr.startswith("no picture will be drawn: plots need matplotlib")
    assert not (tmp_path / "sweep.png").exists()
    assert "sweep.png" not in (tmp_path / "sweep.md").read_text()
    assert len(read_csv(tmp_path / "sweep.csv")) == 3
