"""`edm2lite evaluate` as a whole: processes share its images, and memory does not grow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from evaluating import evaluate

from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.frechet import frechet_distance
from edm2lite.tools.edm2lite import main as edm2lite

HERE = Path(__file__).parent


def succeed(*arguments):
    result = CliRunner().invoke(edm2lite, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output


@pytest.mark.slow
def test_two_ranks_find_the_metrics_of_one(run_dir, tmp_path):
    """Of a folder of images, of a data set, and of a model that generates on the fly."""
    weights = tmp_path / "classifier.safetensors"
    train_classifier(weights, num_epochs=1)
    reference = tmp_path / "reference.safetensors"
    stats = ("evaluate", "stats", "digits", "--extractor", "digits", "--weights", weights)
    succeed(*stats, "--features", "--out", reference)
    images = tmp_path / "images"
    succeed("generate", run_dir, "--seeds", "0-299", "--steps", 1, "--out", images)
    sources = [str(images), "digits", f"{run_dir}@sigma_rel=0.1"]
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
    evaluate(tmp_path, sources, one)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *command, str(HERE / "evaluating.py"), str(tmp_path), str(two), *sources],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(HERE)},
    )
    assert done.returncode == 0, done.stderr
    for i in range(len(sources)):
        printed = (one / f"score{i}.txt").read_text()
        assert [line.split()[0] for line in printed.splitlines()[1:]] == [
            "fd(digits)", "kid", "precision", "recall",
        ]  # fmt: skip
        assert (two / f"score{i}.txt").read_text() == printed
    a, b = (FeatureStats.load(folder / "stats.safetensors") for folder in (one, two))
    assert (a.count, a.source) == (b.count, b.source) == (1797, "digits")
    # sums of 1797 float64 in another order; means are about 1
    assert abs(a.mean - b.mean).max() < 1e-12 and abs(a.cov - b.cov).max() < 1e-12
    assert abs(frechet_distance(a, b)) < 1e-6
    assert not list(two.glob("*.parts"))


MEASURE = """
import resource, sys
from functools import partial
from pathlib import Path
import torch
from edm2lite.metrics.extractors import Extractor
from edm2lite.metrics.feature_stats import feature_stats
from edm2lite.metrics.frechet import FID
from edm2lite.metrics.influence import covariance
from edm2lite.metrics.measurement import ImageRows
from edm2lite.metrics.rows import Rows

torch.set_num_threads(1)
F = 512
weight = torch.randn(64, F, generator=torch.Generator().manual_seed(0)) / 1000
extractor = Extractor("x", None, lambda x: (x[:, 0].flatten(1).float() @ weight,), "")

def images(indices):
    generator = torch.Generator().manual_seed(indices[0])
    return torch.randint(0, 256, (len(indices), 1, 8, 8), dtype=torch.uint8, generator=generator)

def make(wanted):
    return torch.from_numpy(extractor.features(images(wanted))).float(), None

def peak(num, folder):
    starts = range(0, num, 128)
    reference = feature_stats((images(range(i, i + 128)) for i in starts), extractor, "made up")
    rows = Rows(folder, {})
    rows.fill(num, make)
    measured = FID(reference, extractor).measure(ImageRows(partial(rows.parts, num), num))
    covariance([measured.influences])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

few = peak(2048, Path(sys.argv[1]))  # all of it once: libraries are loaded, memory is taken
print(few, peak(20480, Path(sys.argv[1])))
"""


def test_memory_of_the_distance_does_not_grow_with_the_number_of_images(tmp_path):
    """Features of 18432 more would be 75 MB in float64; influences take 40 bytes an image."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    few, many = (int(kib) / 1024 for kib in done.stdout.split())
    assert many - few < 16, (few, many)
