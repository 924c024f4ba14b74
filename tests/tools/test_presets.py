"""The shipped configurations against Table 6 of arXiv 2312.02696."""

import re
from importlib import resources

import pytest

from edm2lite.training.config import load_config, shipped
from edm2lite.training.schedule import learning_rate

SIZES = {"xxs": 64, "xs": 128, "s": 192, "m": 256, "l": 320, "xl": 384, "xxl": 448}
TABLE = {  # duration in Mi images, peak learning rate, dropout, final learning rate
    "img512-xxs": (2048, 0.0170, 0, 0.00439),
    "img512-xs": (2048, 0.0120, 0, 0.00310),
    "img512-s": (2048, 0.0100, 0, 0.00258),
    "img512-m": (2048, 0.0090, 0.10, 0.00233),
    "img512-l": (1792, 0.0080, 0.10, 0.00221),
    "img512-xl": (1280, 0.0070, 0.10, 0.00229),
    "img512-xxl": (896, 0.0065, 0.10, 0.00254),
    "img64-xs": (1024, 0.0120, 0, 0.00310),
    "img64-s": (1024, 0.0100, 0, 0.00258),
    "img64-m": (2048, 0.0090, 0.10, 0.00164),
    "img64-l": (1024, 0.0080, 0.10, 0.00207),
    "img64-xl": (640, 0.0070, 0.10, 0.00229),
}
COUNTS = {
    "img512-xxs": 31_309_029, "img512-xs": 124_713_253, "img512-s": 280_212_837,
    "img512-m": 497_807_781, "img512-l": 777_498_085, "img512-xl": 1_119_283_749,
    "img512-xxl": 1_523_164_773, "img64-s": 280_209_381,
}  # fmt: skip


def load(name, *overrides):
    return load_config(name, ("data.source=somewhere", *overrides))


@pytest.mark.parametrize("name", TABLE)
def test_preset_is_the_row_of_the_table(name):
    config = load(f"edm2-{name}")
    duration, ref_lr, dropout, final = TABLE[name]
    optim, latents = config.optim, name.startswith("img512")
    assert config.net.backbone.model_channels == SIZES[name.rpartition("-")[2]]
    assert (config.total_nimg, config.batch_size) == (duration * 2**20, 2048)
    assert (optim.ref_lr, optim.rampup_nimg) == (ref_lr, 10_000_000)
    assert optim.ref_batches == (70_000 if latents else 35_000)
    assert config.net.backbone.dropout == dropout
    assert (config.loss.P_mean, config.loss.P_std) == ((-0.4, 1.0) if latents else (-0.8, 1.6))
    assert (config.net.backbone.img_channels, config.net.backbone.label_dim) == (
        4 if latents else 3,
        1000,
    )
    schedule = {"ref_lr": ref_lr, "ref_batches": optim.ref_batches, "rampup_nimg": 10_000_000}
    last = learning_rate(config.total_nimg, 2048, **schedule)
    assert last == pytest.approx(final, abs=5e-6)  # the table has five decimals


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_are_the_published_ones(name):
    assert load(f"edm2-{name}").net.num_parameters() == COUNTS[name]


@pytest.mark.parametrize("name, millions", [("xs", 124.20), ("s", 279.45)])
def test_unconditional_presets_are_the_conditional_ones_without_classes(name, millions):
    unconditional = load(f"edm2-img512-{name}-uncond")
    assert unconditional == load(f"edm2-img512-{name}", "net.backbone.label_dim=0")
    assert unconditional.net.num_parameters() / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.parametrize("name", TABLE)
def test_every_preset_is_unconditional_by_one_setting(name):
    net, plain = load(f"edm2-{name}").net, load(f"edm2-{name}", "net.backbone.label_dim=0").net
    assert net.num_parameters() - plain.num_parameters() == 1000 * net.backbone.emb_channels


@pytest.mark.parametrize("name", shipped())
def test_presets_of_half_precision_are_for_gpus_and_are_compiled(name):
    config = load(name)
    assert config.compile == (config.net.dtype != "float32")


@pytest.mark.parametrize("name", shipped())
def test_header_of_every_configuration_says_its_size_and_what_was_run(name):
    text = (resources.files("edm2lite.configs") / f"{name}.yaml").read_text(encoding="utf-8")
    header = "".join(line for line in text.splitlines(True) if line.startswith("#"))
    stated = re.search(r"(\d[\d ]*\d) parameters", header)[1].replace(" ", "")
    assert int(stated) == load(name).net.num_parameters()
    assert f"edm2lite.training {name} --out" in header
    assert "not yet measured" in header or "RESULTS.md" in header
