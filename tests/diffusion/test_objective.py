"""The loss under every objective, at infinity, in a training run, and drawn."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner
from open_gains import open_network
from PIL import Image
from tiny_run import tiny_config

from edm2lite.diffusion.ddpm import DDPM
from edm2lite.diffusion.noise_density import DENSITIES
from edm2lite.diffusion.objective import DenoisingLoss, Objective, noised
from edm2lite.diffusion.parametrization import EMBEDDINGS, PARAMETRIZATIONS
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.diffusion.quantile_densities import Cosine
from edm2lite.diffusion.weighting import WEIGHTINGS, Weighting
from edm2lite.models.loading import load
from edm2lite.network.unet import UNetConfig
from edm2lite.plotting.objectives import noise_grid, weight_quantiles
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.training.config import load_config
from edm2lite.training.trainer import Trainer

TINY = UNetConfig(
    img_resolution=4, img_channels=1, model_channels=16, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), head_channels=16,
)  # fmt: skip
INFINITE = ["net.embedding=angle", "loss={kind: ddpm, num_levels: 4, zero_terminal_snr: true}"]


# Squared errors of the papers, with D, y of standard deviation 0.5 and t = sigma / (sigma + 0.5) of
# the same signal-to-noise ratio (0.5 / sigma)**2
PAPERS = {
    # arXiv 2303.09556: min(SNR, 5) |x0 - x|**2 for data of variance 1
    "min_snr": lambda D, y, n, sigma: np.minimum((0.5 / sigma) ** 2, 5) * ((D - y) / 0.5) ** 2,
    # arXiv 2006.11239: |epsilon - n|**2
    "epsilon": lambda D, y, n, sigma: ((y + sigma * n - D) / sigma - n) ** 2,
    "x0": lambda D, y, n, sigma: ((D - y) / 0.5) ** 2,
    "flow": lambda D, y, n, sigma: _velocity_error(D / 0.5, y / 0.5, n, sigma / (sigma + 0.5)),
    # arXiv 2206.00364: |F - target|**2 where D = c_skip x + c_out F
    "edm": lambda D, y, n, sigma: ((D - y) / (sigma * 0.5 / np.hypot(sigma, 0.5))) ** 2,
}


def _velocity_error(D, y, n, t):
    """arXiv 2209.03003: z = (1 - t) y + t n has the velocity n - y; of D, that which leads to z."""
    z = (1 - t) * y + t * n
    return ((z - (1 - t) * D) / t - D - (n - y)) ** 2


def open_net(**settings):
    return open_network(TINY, **settings)


def batch(num=4):
    return torch.randn(num, 1, 4, 4) / 2, torch.randn(num, 1, 4, 4)


@pytest.mark.parametrize("kind", PAPERS)
@pytest.mark.parametrize("form", ["v", "flow"])
def test_a_fixed_weighting_is_the_squared_error_of_its_paper(kind, form):
    net, (images, noise) = open_net(parametrization=form), batch()
    sigma = torch.tensor([0.05, 0.5, 2.0, 60.0])
    loss = DenoisingLoss(net, Weighting(kind=kind))(images, None, sigma, noise)
    D_x = net(images + sigma[:, None, None, None] * noise, sigma)
    values = (v.detach().double().numpy() for v in (D_x, images, noise, sigma[:, None, None, None]))
    expected = PAPERS[kind](*values).sum((1, 2, 3))
    np.testing.assert_allclose(loss.loss.detach(), expected, rtol=1e-4)  # float32
    assert loss.u.tolist() == [0, 0, 0, 0]


def test_every_parameter_that_wants_a_gradient_gets_one():
    """Or replicas of a distributed run would wait for it."""
    for weighting in (Weighting(), Weighting(kind="min_snr")):
        net, (images, noise) = open_net(), batch()
        DenoisingLoss(net, weighting)(images, None, torch.ones(4), noise).loss.sum().backward()
        wanting = [p for p in net.parameters() if p.requires_grad]
        assert all(p.grad is not None for p in wanting)
        assert net.logvar_linear.weight.requires_grad == weighting.is_learned


@pytest.mark.parametrize("form", ["edm", "v", "x0", "flow", "trigflow"])
@pytest.mark.parametrize("kind", ["uncertainty", "edm", "x0", "flow"])
def test_samples_at_infinity_join_a_batch_without_touching_the_others(form, kind):
    net, (images, noise) = open_net(parametrization=form, embedding="time"), batch()
    loss = DenoisingLoss(net, Weighting(kind=kind))
    sigma = torch.tensor([0.5, math.inf, 3.0, math.inf])
    mixed = loss(images, None, sigma, noise).loss
    mixed.sum().backward()
    gradients = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    assert mixed.isfinite().all() and all(g.isfinite().all() for g in gradients)
    net.zero_grad()
    alone = [
        loss(images[i : i + 1], None, sigma[i : i + 1], noise[i : i + 1]).loss for i in range(4)
    ]
    sum(alone).backward()
    torch.testing.assert_close(mixed, torch.cat(alone).detach(), rtol=1e-5, atol=1e-5)
    for p, gradient in zip((p for p in net.parameters() if p.grad is not None), gradients,
                           strict=True):  # fmt: skip
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-4)
    # pure noise is the limit of large levels: 1e-5 is what is left of the image at 1e5
    near = loss(images, None, sigma.clamp(max=1e5), noise).loss
    torch.testing.assert_close(mixed, near, rtol=1e-3, atol=1e-3)


def test_at_infinity_the_network_sees_the_noise_alone():
    images, noise = batch(2)
    x = noised(images, torch.tensor([math.inf, 2.0]), noise)
    assert x[0].equal(noise[0]) and x[1].equal(images[1] + 2 * noise[1])


def test_infinity_is_refused_where_it_means_nothing():
    x = torch.randn(1, 1, 4, 4)
    with pytest.raises(ValueError, match="infinity: it is told the noise level as ln"):
        open_net()(x, math.inf)
    with pytest.raises(ValueError, match="predicts the noise, which is all that there is"):
        open_net(parametrization="epsilon", embedding="angle")(x, torch.tensor([math.inf]))


def test_checks_of_levels_and_labels_do_not_stand_in_the_way_of_vmap():
    unet = UNetConfig(**{**vars(TINY), "label_dim": 3})
    net = Precond(PrecondConfig(backbone=unet, embedding="angle"))
    x, sigma, labels = torch.randn(3, 1, 4, 4), torch.rand(3) + 0.1, torch.tensor([0, 2, -1])
    each = torch.func.vmap(lambda x, s, c: net(x[None], s[None], c[None])[0])(x, sigma, labels)
    torch.testing.assert_close(each, net(x, sigma, labels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "changes, message",
    [
        (["loss={kind: ddpm, zero_terminal_snr: true}"], "ln\\(sigma\\) / 4"),
        ([*INFINITE, "net.parametrization=epsilon"], "epsilon predicts the noise"),
        ([*INFINITE, "weighting.kind=min_snr"], "min_snr is 0"),
        (["weighting.kind=min-snr"], "weighting: kind must be one of uncertainty, edm"),
        (["weighting.gamma=3"], "weighting: gamma belongs to min_snr, got gamma = 3.0"),
        (["net.parametrization=velocity"], "net.parametrization"),
        (["loss.kind=normal"], "loss.kind must be one of lognormal, log_uniform"),
        (["loss={kind: mode, s: 3}"], "loss: s must lie in"),
        (["loss={kind: cosine, P_std: 3}"], "unknown key loss.P_std"),
        (["loss.P_std=wide"], "loss.P_std must be a number"),
    ],
)
def test_impossible_objectives_are_refused_with_the_reason(changes, message):
    with pytest.raises(ValueError, match=message):
        load_config("digits", changes)


@pytest.mark.parametrize("kind", list(DENSITIES))
def test_configurations_survive_their_text_form(kind, tmp_path):
    loss = f"loss={{kind: {kind}, shift: 0.5}}"
    config = load_config("digits", [loss, "weighting={kind: sigmoid, bias: -1e0}"])
    assert type(config.loss) is DENSITIES.find(kind) and config.weighting.bias == -1
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_config(str(tmp_path / "config.yaml")) == config


def test_a_run_with_infinity_and_a_fixed_weighting_continues_bit_for_bit(tmp_path):
    changes = [*INFINITE, "net.parametrization=flow", "weighting.kind=flow", "total_nimg=640"]
    device = torch.device("cpu")
    Trainer(tiny_config(*changes), tmp_path / "whole", device).train()
    half = tiny_config(*changes, "total_nimg=320")
    Trainer(half, tmp_path / "parts", device).train()
    Trainer(tiny_config(*changes), tmp_path / "parts", device).train()
    whole, parts = (load(tmp_path / name).net for name in ("whole", "parts"))
    for name, value in whole.state_dict().items():
        assert value.equal(parts.state_dict()[name]), name
    assert parts.config.parametrization == "flow" and parts.config.embedding == "angle"
    x = torch.randn(2, 1, 8, 8)
    assert parts(x, math.inf, torch.tensor([0, 1])).isfinite().all()


def test_effective_weight_is_the_density_where_the_weighting_is_edm():
    net = PrecondConfig(backbone=TINY, parametrization="flow")
    objective = Objective(net=net, loss=Cosine(shift=0.5), weighting=Weighting(kind="edm"))
    x = torch.linspace(-5, 5, 11).double()
    torch.testing.assert_close(objective.effective_weight(x), objective.loss.pdf(x))
    low, middle, high = weight_quantiles(objective, (0.16, 0.5, 0.84))
    # tan(pi u / 2) / 2 at u = 0.5: the grid ends at 4 times the middle range and has 2001 points
    assert middle == pytest.approx(0.5, rel=0.02)
    assert low == pytest.approx(0.5 * math.tan(math.pi / 2 * 0.16), rel=0.05)
    assert high * low == pytest.approx(0.25, rel=0.05)
    assert len(noise_grid({"": objective})) == 2001


def test_magnitudes_show_a_wrong_sigma_data():
    objective = Objective(
        net=PrecondConfig(backbone=TINY), loss=DDPM(), weighting=Weighting(kind="x0")
    )
    sigma = torch.tensor([0.01, 50.0]).double()
    seen, target = objective.magnitudes(sigma, data_std=1.0)
    # at little noise the input is the image, at much the target is: both twice too large
    torch.testing.assert_close(torch.stack([seen[0], target[1]]), torch.full((2,), 2.0).double(),
                               rtol=1e-3, atol=0)  # fmt: skip
    seen, target = objective.magnitudes(sigma, data_std=0.5)
    torch.testing.assert_close(torch.cat([seen, target]), torch.ones(4).double())


def test_plot_objective_draws_files_runs_and_shipped_configurations(tmp_path, run_dir):
    values = yaml.safe_load(load_config("digits").to_yaml())
    values["net"]["parametrization"] = "v"
    values["loss"] = {"kind": "vp", "beta_min": "1e-1"}
    values["weighting"] = {"kind": "min_snr", "gamma": 3}
    mine = tmp_path / "mine.yaml"
    mine.write_text(yaml.safe_dump(values))
    out = tmp_path / "picture.png"
    arguments = ["plot-objective", "digits", str(mine), str(run_dir), "--out", str(out)]
    result = CliRunner().invoke(edm2lite, arguments)
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.output.splitlines()]
    assert rows[2][1:4] == ["v", "min_snr", "vp"] and rows[1][1:4] == [
        "edm", "uncertainty", "lognormal",
    ]  # fmt: skip
    # median and 84 % quantile of the log-normal density of the preset
    assert float(rows[1][5]) == pytest.approx(math.exp(-0.4), rel=0.02)
    assert float(rows[1][6]) == pytest.approx(math.exp(-0.4 + 1.2 * 0.9945), rel=0.02)
    with Image.open(out) as picture:
        assert min(picture.size) > 700 and len(picture.getcolors(1 << 20)) > 50


@pytest.mark.parametrize(
    "text, message",
    [
        (None, "there is no configuration"),
        ("- a\n", "must hold keys and values"),
        ("data: {source: digits}\n", "net.backbone must be given"),
        ("loss: {kind: normal}\n", "loss.kind must be one of lognormal"),
        ("loss: {P_mean: high}\n", "loss.P_mean must be a number"),
        ("loss: {mean: 1}\n", "unknown key loss.mean; the nearest known one is loss.P_mean"),
        ("loss: {kind: ddpm, zero_terminal_snr: true}\n", "ln(sigma) / 4"),
    ],
)
def test_plot_objective_says_what_is_wrong(text, message, tmp_path):
    source = tmp_path / "config.yaml"
    if text is not None:
        net = "" if "data" in text else "net: {unet: {img_resolution: 8, img_channels: 1}}\n"
        source.write_text(text if text.startswith("-") else net + text)
    result = CliRunner().invoke(
        edm2lite, ["plot-objective", str(source), "--out", str(tmp_path / "x.png")]
    )
    assert result.exit_code == 1 and message in result.output, result.output
    assert not (tmp_path / "x.png").exists()


PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")


def test_the_page_names_every_choice():
    rows = re.findall(r"^\| `(\w+)`", PAGE, re.M)
    assert set(rows) == {*PARAMETRIZATIONS, *WEIGHTINGS, *DENSITIES}
    assert all(f"`{name}`" in PAGE for name in EMBEDDINGS)
