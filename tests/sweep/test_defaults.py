"""A sweep that is asked for nothing: its reference is made of the images of the run."""

import shutil

import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from tiny_run import tiny_config

from edm2lite.dataset import Conversion, convert_images, open_collection
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.sweep import defaults
from edm2lite.sweep.defaults import LENGTHS, with_defaults
from edm2lite.tools.sweep_ema import main as sweep_command


def invoke(*words):
    return CliRunner().invoke(sweep_command, [str(word) for word in words])


@pytest.fixture
def run(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(defaults, "SAMPLES", {"cpu": 128, "cuda": 128})  # one round of training
    return shutil.copytree(run_dir, tmp_path / "run")


def test_a_sweep_without_options_measures_against_the_images_of_the_run(run):
    few = ("--num", 40, "--steps", 1, "--max-error", 0.5)
    done = invoke(run, *few)
    assert done.exit_code == 0, done.output
    for said in ("lengths   3, 5, 7, 10,", "metric    distance of generated images from the 1797"):
        assert said in done.stderr
    assert len((run / "sweep.csv").read_text().splitlines()) == 1 + 1 + len(LENGTHS)  # and raw
    made = {
        name: (run / name).stat().st_mtime_ns for name in (defaults.NETWORK, defaults.REFERENCE)
    }
    assert FeatureStats.load(run / defaults.REFERENCE).count == 1797
    again = invoke(run, *few)
    assert again.exit_code == 0 and again.stdout == done.stdout
    assert made == {name: (run / name).stat().st_mtime_ns for name in made}


def test_a_metric_of_features_makes_a_reference_that_keeps_them(run):
    found = with_defaults({"run": run, "metric": "kid"})
    found.prepare()
    kept = FeatureStats.load(run / defaults.REFERENCE)
    assert kept.features is not None and kept.features.shape == (1797, 128)


def test_classes_of_generated_images_are_those_of_the_training_images(run):
    found = with_defaults({"run": run, "num": 600})
    labels = found.options["conditions"].labels
    assert len(labels) == 600 and set(labels.tolist()) == set(range(10))
    assert found.options["steps"] == 12  # tests run on a CPU


def test_only_the_images_that_the_run_saw_are_its_reference(run):
    text = tiny_config("data.classes=[3, 4]", "data.per_class=50").to_yaml()
    (run / "config.yaml").write_text(text)
    assert set(defaults.training_images(run).labels.tolist()) == {3, 4}
    assert len(defaults.training_images(run)) == 100


def test_a_network_is_told_what_it_takes_and_nothing_else(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["net"]["backbone"]["label_dim"] = 0
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "conditions" not in with_defaults({"run": run}).options


def test_images_that_were_told_as_one_class_are_of_that_class(run):
    text = tiny_config("data.classes=[3]", "data.as_class=7").to_yaml()
    (run / "config.yaml").write_text(text)
    assert set(with_defaults({"run": run}).options["conditions"].labels.tolist()) == {7}


def test_the_reference_stays_with_the_run_wherever_results_go(run, tmp_path):
    found = with_defaults({"run": run, "out": tmp_path / "elsewhere"})
    assert found.options["ref"] == run / defaults.REFERENCE
    with pytest.raises(ValueError, match="--weights goes with --ref"):
        with_defaults({"run": run, "weights": "net.safetensors"})


def test_a_run_that_was_moved_finds_the_pictures_in_it(run, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(40):
        Image.new("L", (8, 8), 6 * i).save(photos / f"{i}.png")
    convert_images(open_collection(photos), run / "dataset.zip", Conversion(resolution=8))
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["source"] = "runs/where/it/was/dataset.zip"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(defaults.training_images(run)) == 40


def test_what_is_given_stays_and_nothing_is_made_for_it(run):
    given = {"run": run, "search": True, "metric": "loss", "data": "digits", "steps": 5}
    found = with_defaults(given)
    assert found.options == given and found.lines == []
    found.prepare()
    assert not (run / defaults.NETWORK).exists()


def test_a_run_without_a_configuration_needs_a_reference(run):
    (run / "config.yaml").unlink()
    done = invoke(run)
    assert done.exit_code == 1 and "--ref must be given" in done.output
    assert not (run / defaults.NETWORK).exists()
