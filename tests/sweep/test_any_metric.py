"""Sweeps of KID, of shares, of a user's metrics; in Python and as the command; old ledgers."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tiny_run import ref, tiny_config

from edm2lite.metrics import FeatureStats, open_extractor, statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.metrics.kernel import kernel_distance
from edm2lite.metrics.manifold import precision_recall
from edm2lite.sampling import Sampling
from edm2lite.sampling.generation import generate
from edm2lite.sweep import read_csv, sweep_ema
from edm2lite.sweep.ledger import Ledger
from edm2lite.tools.sweep_ema import main as sweep_command
from edm2lite.training.trainer import Trainer

FEW = Sampling(num_steps=1)
LENGTHS = [0.05, 0.1, 0.2]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    weights = folder / "classifier.safetensors"
    train_classifier(weights, num_epochs=1)
    stats = statistics("digits", "digits", weights=weights, keep_features=True)
    return stats.save(folder / "reference.safetensors")


def features_of(run, length, reference, num):
    images = generate(f"{run}@sigma_rel={length}", range(num), classes="all", sampling=FEW)
    weights = FeatureStats.load(reference).weights
    return open_extractor("digits", weights).features(images).astype(np.float32)


def run(*words):
    done = CliRunner().invoke(sweep_command, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("metric", ["kid", "precision", "recall"])
def test_a_sweep_measures_the_metric_of_the_same_images(run_dir, reference, tmp_path, metric):
    text = run(run_dir, "--sigma-rel", "0.05,0.2", "--metric", metric, *ref(reference),
               "--num", 150, "--steps", 1, "--out", tmp_path)  # fmt: skip
    points = {p.sigma_rel: p for p in read_csv(tmp_path / "sweep.csv")}
    real = FeatureStats.load(reference).features
    for length in (0.05, 0.2):
        found = features_of(run_dir, length, reference, 150)
        expected = kernel_distance(found, real)[0]
        if metric != "kid":
            expected = precision_recall(found, real)[metric == "recall"]
        point = points[length]
        assert point.value == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert point.low <= point.value <= point.high
    ranked = sorted((0.05, 0.2), key=lambda s: points[s].value, reverse=metric != "kid")
    assert f"Best EMA length {100 * ranked[0]:g} %" in text
    assert (tmp_path / "sweep.png").is_file()


OWN = """
from edm2lite.metrics import ImageMetric, Measurement

class Darkness(ImageMetric):
    label = "darkness"
    lower_is_better = False

    def rows(self, images, conditioning):
        return (255 - images.float()).mean(dim=(1, 2, 3))[:, None].numpy()

    def measure(self, rows):
        return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)

class Bare(Darkness):
    label = "bare darkness"

    def measure(self, rows):
        return Measurement(super().measure(rows).value)
"""


@pytest.fixture
def own_metrics(tmp_path, monkeypatch):
    (tmp_path / "own_sweep_metrics.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_metrics")
def test_a_metric_of_a_users_is_swept_by_name(run_dir, tmp_path):
    words = (run_dir, "--sigma-rel", "0.05,0.1,0.2", "--num", 60, "--steps", 1)
    out = tmp_path / "sweep"
    text = run(*words, "--metric", "own_sweep_metrics:Darkness", "--out", out)
    points = [p for p in read_csv(out / "sweep.csv") if p.sigma_rel]
    images = [
        generate(f"{run_dir}@sigma_rel={s}", range(60), classes="all", sampling=FEW)
        for s in LENGTHS
    ]
    expected = [255 - i.float().mean().item() for i in images]
    np.testing.assert_allclose([p.value for p in points], expected, rtol=1e-5)
    best = LENGTHS[int(np.argmax(expected))]
    assert f"Best EMA length {100 * best:g} %: darkness" in text
    assert all(p.low < p.value < p.high for p in points)
    assert "darkness" in (out / "sweep.md").read_text()


@pytest.mark.usefixtures("own_metrics")
def test_a_search_for_the_highest_value_finds_it(run_dir, tmp_path):
    sweep = sweep_ema(run_dir, search=True, metric="own_sweep_metrics:Darkness", num=60,
                      sampling=FEW, out=tmp_path)  # fmt: skip
    assert sweep.best.value == max(p.value for p in sweep.points if p.num == sweep.best.num)
    assert "The maximum lies at" in sweep.words and "Searched" in sweep.words


@pytest.mark.usefixtures("own_metrics")
def test_a_sweep_without_intervals_says_that_nothing_can_be_told_apart(run_dir, tmp_path):
    words = (run_dir, "--sigma-rel", "0.05,0.1,0.2", "--num", 60, "--steps", 1)
    out = tmp_path / "sweep"
    text = run(*words, "--metric", "own_sweep_metrics:Bare", "--out", out)
    assert "cannot be told apart" in text and "Every other length is worse" not in text
    points = read_csv(out / "sweep.csv")
    assert all(p.low is None and p.high is None for p in points)
    assert "| none |" in (out / "sweep.md").read_text() and (out / "sweep.png").is_file()
    assert '"low":null' in (out / "sweep.html").read_text()
    assert run(*words, "--metric", "own_sweep_metrics:Bare", "--out", out) == text  # the ledger
    sweep = sweep_ema(run_dir, LENGTHS, metric="own_sweep_metrics:Bare", num=60, sampling=FEW,
                      out=out)  # fmt: skip
    assert sweep.alike is None and sweep.verdict.low is None


def test_a_sweep_in_python_is_that_of_the_command(run_dir, reference, tmp_path):
    progress = []
    weights = reference.parent / "classifier.safetensors"
    sweep = sweep_ema(run_dir, LENGTHS, ref=reference, weights=weights, num=80, sampling=FEW,
                      out=tmp_path / "python",
                      progress=lambda done, total: progress.append((done, total)))  # fmt: skip
    text = run(run_dir, "--sigma-rel", "0.05,0.1,0.2", *ref(reference), "--num", 80,
               "--steps", 1, "--out", tmp_path / "command")  # fmt: skip
    assert sweep.points == read_csv(tmp_path / "command/sweep.csv")
    assert sweep.words in text and sweep.title in (tmp_path / "command/sweep.md").read_text()
    # three lengths, and the raw weights; the total is known before the first image
    assert progress[0] == (0, 320) and progress[-1] == (320, 320)
    page = sweep.write(tmp_path / "written")
    for name in ("sweep.csv", "sweep.md", "sweep.html"):
        expected = (tmp_path / "command" / name).read_bytes()
        assert (page.parent / name).read_bytes() == expected
    assert sweep.table() in (page.parent / "sweep.md").read_text()
    assert [p.sigma_rel for p in sweep.final] == LENGTHS and sweep.best in sweep.alike
    assert all(i.shape == (40, 1, 8, 8) for i in sweep.images().values())


def test_a_ledger_of_version_0_1_is_continued(reference, tmp_path, monkeypatch):
    """Its key is as that version wrote it, with other names of the metric and of the guide."""
    run_dir = tmp_path / "run"
    Trainer(tiny_config("data.label_dropout=0.1"), run_dir, torch.device("cpu")).train()
    words = (run_dir, "--sigma-rel", "0.05,0.1", *ref(reference), "--num", 70, "--steps", 1,
             "--guidance", 1.5, "--out", tmp_path)  # fmt: skip
    text = run(*words, "--guide", "unconditional")
    entry = json.loads((tmp_path / "sweep.jsonl").read_text().splitlines()[0])
    assert entry["setting"] == {
        "metric": "fd",
        "run": json.loads((run_dir / "run.json").read_text())["run"],
        "protocol": {
            "extractor": "digits",
            "reference": FeatureStats.load(reference).digest,
            "guide": "unlabelled",
            "first_seed": 0,
            "num_steps": 1,
        },
    }
    monkeypatch.setattr(Ledger, "add", None)  # must not be called
    assert run(*words, "--guide", "unconditional", "--metric", "fd") == text
    assert run(*words, "--guide", "unlabelled", "--metric", "fid") == text
