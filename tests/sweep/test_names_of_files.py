"""Names of files in what a sweep writes: no formula, no markup."""

import pytest

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.metrics.interval import Verdict
from edm2lite.models.model_card import model_card
from edm2lite.network.unet import UNetConfig
from edm2lite.plotting.sweep import plot_curve, plot_heat
from edm2lite.sweep.cells import Point
from edm2lite.sweep.table import write_report

POINTS = [Point(s, 1024, value=v, low=v - 1, high=v + 1, num=9) for s, v in ((0.1, 3.0), (0.2, 2))]
VERDICT = Verdict(1, 0.2, 0.15, 0.25, open_low=False, open_high=False, alike=(1,))


@pytest.mark.parametrize("name", [r"a$\frac$b.safetensors", "$x$", r"\$_{$", "$5, $7 and $9"])
def test_a_name_with_dollars_is_drawn_as_it_stands(tmp_path, name):
    pytest.importorskip("matplotlib", reason="pip install 'edm2lite[test]'")
    plot_curve(tmp_path / "curve.png", POINTS, VERDICT, "fid", name)
    grid = [Point(s, n, value=s * n, num=9) for s in (0.1, 0.2) for n in (512, 1024)]
    plot_heat(tmp_path / "heat.png", grid, "fid", name)
    assert (tmp_path / "curve.png").is_file() and (tmp_path / "heat.png").is_file()


def test_markup_in_a_name_is_text(tmp_path):
    name = "<img src=x onerror=alert(1)>\n# b"
    path = tmp_path / "sweep.md"
    write_report(path, POINTS, "fid", "words", f"9 images, {name}", "")
    text = path.read_text()
    assert "<img" not in text and "&lt;img src=x onerror=alert(1)&gt; # b." in text
    unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
                      num_blocks=1, attn_resolutions=(), head_channels=8)  # fmt: skip
    metadata = {"model": PrecondConfig(backbone=unet).to_json()}
    heading = model_card(metadata, "mit", name).split("\n# ")[1].splitlines()[0]
    assert heading == "&lt;img src=x onerror=alert(1)&gt; # b"
