"""Data sets that a function of a user returns, wherever a data set can be named."""

import pytest
from click.testing import CliRunner

from edm2lite.dataset import open_dataset
from edm2lite.network.conditions import ClassLabel, Vector
from edm2lite.tools.edm2lite import main as edm2lite

MODULE = '''
import numpy as np
from edm2lite.dataset import open_dataset
from edm2lite.network.conditions import Vector

def turned():
    """The digits, a quarter of them turned by each multiple of 90 degrees."""
    digits = open_dataset("digits")
    turns = np.arange(len(digits)) % 4
    return type(digits)(
        "turned", len(digits), digits.image_shape,
        lambda i: np.rot90(digits.read(i), turns[i], axes=(1, 2)), digits.table,
    ).with_condition(Vector("turn", 4), np.eye(4)[turns])

class Space:
    few = staticmethod(turned)

nothing = None
number = 3

def mistaken():
    return [1, 2]
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "digit_variants.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["digit_variants:turned", "digit_variants:Space.few"])
def test_a_function_is_called_by_its_name(name):
    dataset, digits = open_dataset(name), open_dataset("digits")
    assert dataset.conditions == (ClassLabel(10), Vector("turn", 4))
    assert (dataset.read(5)[0] == digits.read(5)[0, :, ::-1].T).all()  # once, counterclockwise
    assert dataset.conditioning([6, 5])["turn"].tolist() == [[0, 0, 1, 0], [0, 1, 0, 0]]


def test_commands_take_it_as_any_other_data_set():
    result = CliRunner().invoke(edm2lite, ["dataset", "info", "digit_variants:turned"])
    assert result.exit_code == 0, result.output
    assert "turned: 1797 images as pixels" in result.output
    assert "condition: turn, a vector of 4 numbers" in result.output
    result = CliRunner().invoke(edm2lite, ["dataset", "verify", "digit_variants:turned"])
    assert "1797 images in digit_variants:turned, all intact" in result.output


def test_a_folder_of_that_name_is_preferred(tmp_path):
    (tmp_path / "digit_variants:turned").mkdir()
    with pytest.raises(ValueError, match="digit_variants:turned must hold images"):
        open_dataset("digit_variants:turned")


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("digit_variants:mistaken", ValueError, "must return an .*ImageDataset, it returned list"),
        ("digit_variants:number", ValueError, "must be a function without arguments, got 3"),
        ("digit_variants:nothing", ValueError, "module digit_variants has no nothing"),
        ("digit_variants:gone", ValueError, "module digit_variants has no gone"),
        ("digit_nowhere:turned", ValueError, "there is no module digit_nowhere"),
        ("no/folder:here", FileNotFoundError, "no data set at .*'digits' .* module:function"),
        ("folder", FileNotFoundError, "give a folder or ZIP .*'digits' .* module:function"),
    ],
)
def test_names_that_lead_nowhere_are_explained(name, error, message):
    with pytest.raises(error, match=message):
        open_dataset(name)
