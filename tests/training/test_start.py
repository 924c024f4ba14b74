"""Words of the training command that go together, and those that do not."""

import click
import pytest

from edm2lite.training.start import Start


@pytest.mark.parametrize(
    "words, message",
    [
        ({}, "give pictures, as in --data PHOTOS, or a CONFIG"),
        ({"resolution": 32, "name": "digits"}, "--resolution goes with --data"),
        ({"init": "runs/a"}, "--init needs pictures"),
        ({"branch": "runs/a@64", "data": "photos"}, "leave out --data"),
        ({"branch": "runs/a@64", "name": "digits"}, "leave out CONFIG"),
    ],
)
def test_words_that_do_not_go_together_are_refused(tmp_path, words, message):
    with pytest.raises(click.UsageError, match=message):
        Start(**{"name": None, "out": tmp_path / "run", **words}).config()
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_by_its_folder_alone(run_dir):
    assert Start(None, run_dir).config().total_nimg == 1280


def test_a_model_to_fine_tune_is_a_value_of_the_configuration(run_dir):
    config = Start("digits", run_dir, init=str(run_dir), overrides=("seed=3",)).config()
    assert (config.init, config.seed) == (str(run_dir), 3)
