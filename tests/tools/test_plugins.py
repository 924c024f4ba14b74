"""``--plugin``: networks of a user in model files, found if the user names their module."""

import sys
import textwrap

import pytest
import torch
from click.testing import CliRunner

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models import load
from edm2lite.tools import sweep_ema
from edm2lite.tools.edm2lite import main as edm2lite

NETWORK = """
    from dataclasses import dataclass

    from edm2lite.network.backbone import Backbone, BackboneConfig
    from edm2lite.network.layers import MPConv

    @dataclass(frozen=True, kw_only=True)
    class OneConv(BackboneConfig):
        kind: str = "network_of_a_user:OneConv"

        def build(self):
            return Net(self)

    class Net(Backbone):
        def __init__(self, config):
            super().__init__()
            self.config = config
            self.conv = MPConv(config.img_channels, config.img_channels, (3, 3))

        def forward(self, x, c_noise, conditioning):
            return self.conv(x)
"""


@pytest.fixture
def model_file(tmp_path, monkeypatch):
    """A model file whose network is of a module that can be imported, and is not."""
    (tmp_path / "network_of_a_user.py").write_text(textwrap.dedent(NETWORK))
    monkeypatch.syspath_prepend(tmp_path)
    import network_of_a_user

    config = PrecondConfig(backbone=network_of_a_user.OneConv(img_resolution=8, img_channels=1))
    path = Precond(config).save(tmp_path / "net.safetensors")
    monkeypatch.delitem(sys.modules, "network_of_a_user")
    yield path
    sys.modules.pop("network_of_a_user", None)


def run(*words, **variables):
    return CliRunner(env=variables).invoke(edm2lite, [str(word) for word in words])


def line(result):
    assert result.exit_code == 1, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def test_a_model_of_a_user_needs_its_plugin(model_file, tmp_path):
    words = ("generate", model_file, "--seeds", "0-1", "--steps", 1, "--out", tmp_path / "images")
    said = line(run(*words))
    assert "network_of_a_user:OneConv is not part of edm2lite" in said
    assert "--plugin network_of_a_user" in said
    assert "network_of_a_user" not in sys.modules, "a file must not cause an import"
    result = run(*words, "--plugin", "network_of_a_user")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "images").rglob("*.png"))) == 2


def test_plugins_are_named_by_an_environment_variable_too(model_file, tmp_path):
    out = tmp_path / "images"
    words = ("generate", model_file, "--seeds", "0-1", "--steps", 1, "--out", out)
    result = run(*words, EDM2LITE_PLUGINS="json, network_of_a_user")
    assert result.exit_code == 0, result.output


def test_a_plugin_that_is_not_there_is_one_line(model_file, tmp_path):
    words = ("generate", model_file, "--out", tmp_path / "images")
    said = line(run(*words, "--plugin", "no_such_module.at_all"))
    assert "there is no module no_such_module; run the command in its folder, add" in said


def test_a_module_that_a_person_names_may_lie_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    (tmp_path / "my_pixels.py").write_text(
        "from my_helper import Flat\n\n\ndef mine(weights):\n    return Flat()\n"
    )
    (tmp_path / "my_helper.py").write_text("from torch.nn import Flatten as Flat\n")
    words = ("evaluate", "stats", "digits", "--out", tmp_path / "stats.safetensors")
    said = line(run(*words, "--extractor", "my_pixel:mine"))
    assert "there is no module my_pixel; run the command in its folder" in said
    assert str(tmp_path) not in sys.path, "nothing is looked for that nobody has named"
    result = run(*words, "--extractor", "my_pixels:mine")
    assert result.exit_code == 0 and (tmp_path / "stats.safetensors").is_file(), result.output


def test_load_finds_a_network_whose_module_is_imported(model_file):
    with pytest.raises(ValueError, match="import network_of_a_user first"):
        load(model_file)
    import network_of_a_user

    model = load(model_file)
    assert type(model.net.backbone) is network_of_a_user.Net and model.num_classes == 0
    x = torch.randn(2, 1, 8, 8)
    assert model.net(x, 1.0).shape == x.shape


def test_a_model_of_a_user_is_exported_and_its_card_names_the_module(model_file, tmp_path):
    folder = tmp_path / "card"
    plugin = ("--plugin", "network_of_a_user")
    result = run("export", model_file, "--license", "mit", "--out", folder, *plugin)
    assert result.exit_code == 0, result.output
    card = (folder / "README.md").read_text()
    assert "a network of the class `network_of_a_user:OneConv`" in card
    assert "--seeds 0-15 --plugin network_of_a_user --out images" in card
    assert "network of EDM2" not in card


@pytest.mark.parametrize("name", ["generate", "export", "magnitudes", "plot-objective", "evaluate"])
def test_commands_that_load_models_take_plugins(name):
    words = [name, "score"] if name == "evaluate" else [name]
    assert "--plugin MODULE" in run(*words, "--help").output


def test_the_sweep_takes_plugins():
    assert "--plugin MODULE" in CliRunner().invoke(sweep_ema.main, ["--help"]).output
