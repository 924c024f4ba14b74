"""Published settings of the released networks."""

import json

from click.testing import CliRunner
from sampling.generating import fail, save_net, succeed

from edm2lite.sampling.recipes import RECIPES, recipe
from edm2lite.tools.edm2lite import main as edm2lite


def test_recipes_name_the_released_weights():
    assert len(RECIPES) == 2 * 7 + 2 + 3 + 2 * 8 + 2 * 4 + 2
    best = recipe("edm2-img512-xxl-autog-dino")
    assert best.model == "edm2-img512-xxl-0939524-0.130"
    assert best.guide == "edm2-img512-m-0268435-0.205"
    assert recipe("edm2-img64-xl-fid").model == "edm2-img64-xl-0671088-0.040"
    assert recipe("edm2-img64-s-autog-fid").guide == "edm2-img64-xs-0134217-0.110"
    assert recipe("edm2-img512-l-guid-fid").guide == "edm2-img512-xs-uncond-2147483-0.015"
    assert recipe("edm2-img512-s-guid-interval-fid").sampling.interval == (15, 21)
    for name, one in RECIPES.items():
        assert (one.guide is None) == (one.guidance == 1), name
        assert one.value > 1 and len(one.sampling.sigmas or range(32)) in (32, 250)


def test_a_recipe_runs_with_the_weights_in_a_folder(tmp_path):
    name, seeds = "edm2-img512-s-autog-fid", ("--seeds", "0-1", "--out", tmp_path / "x")
    common = ("--recipe", name, "--weights", tmp_path, *seeds)
    assert "edm2-img512-xs-0134217-0.125.safetensors" in fail(*common)
    save_net(tmp_path / "edm2-img512-s-2147483-0.070.safetensors")
    save_net(tmp_path / "edm2-img512-xs-0134217-0.125.safetensors")
    succeed(*common)
    settings = json.loads((tmp_path / "x" / "settings.json").read_text())
    assert settings["guidance"] == 2.1 and "guide" in settings
    assert "brings its own" in fail(*common, "--steps", 8, code=2)
    assert "nearest are edm2-img512-s-autog-fid" in fail(
        "--recipe", "edm2-img512-s-autog-fd", "--weights", tmp_path, *seeds
    )
    listed = CliRunner().invoke(edm2lite, ["generate", "--list-recipes"])
    assert listed.exit_code == 0 and len(listed.output.splitlines()) == 1 + len(RECIPES)
