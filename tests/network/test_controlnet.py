"""ControlNet: silent at the start, joined by angles, and of magnitude 1 at every strength."""

import math

import pytest
import torch

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.backbone import backbone_from_dict
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.controlnet import HINT_ANGLE, Control, Join
from edm2lite.network.layers import normalize_weights_
from edm2lite.network.operations import mp_cat
from edm2lite.network.text import UNetText
from edm2lite.network.unet import UNetConfig

SHAPE = {
    "img_resolution": 8, "img_channels": 2, "label_dim": 3, "model_channels": 16,
    "channel_mult": (1, 2), "num_blocks": 1, "attn_resolutions": (4,), "head_channels": 16,
}  # fmt: skip
TEXT = UNetText(pooled=5, tokens=6, num_tokens=4, attn_resolutions=(4,))
CONTROLS = (Control(channels=3), Control(name="depth", channels=1))


def built(controls, **changes):
    """A network with open gains, the same for every number of controls, and inputs for it."""
    torch.manual_seed(0)
    plain = UNetConfig(**SHAPE, **changes).build()
    for name, p in plain.named_parameters():
        if name.endswith("gain"):
            p.data.fill_(0.7)
        elif not p.any():  # angles
            p.data.normal_(std=0.3)
    net = UNetConfig(**SHAPE, **changes, controls=controls).build()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("controls.") for name in missing)
    for branch in net.controls.values():
        branch.copy_encoder_(net.enc)
    return plain, net


def inputs(num=4):
    torch.manual_seed(1)
    x, c_noise = torch.randn(num, 2, 8, 8), torch.randn(num)
    told = {
        "label": torch.arange(num) % 3, "image": torch.randn(num, 3, 8, 8),
        "depth": torch.randn(num, 1, 8, 8), "pooled": torch.randn(num, 5),
        "tokens": torch.randn(num, 4, 6),
    }  # fmt: skip
    return x, c_noise, told


@pytest.mark.parametrize("changes", [{}, {"text": TEXT}], ids=["classes", "text"])
def test_at_the_start_the_network_is_the_one_without_control(changes):
    plain, net = built(CONTROLS, **changes)
    x, c_noise, told = inputs()
    expected = plain(x, c_noise, Conditioning(told))
    assert net(x, c_noise, Conditioning(told)).equal(expected)
    assert expected.std() > 0.1


def test_skips_and_the_start_of_the_decoder_are_joined_by_angles():
    """The forward pass written out, from the parts of the network, in float64."""
    _, net = built(CONTROLS[:1])
    net.double()
    branch = net.controls["image"]
    for join in branch.joins:
        join.angles.data.uniform_(-1, 1)
    x, c_noise, told = inputs()
    told = Conditioning({"label": told["label"], "image": told["image"].double()})
    x = x.double()
    found = net(x, c_noise, told)
    emb = net.embed(c_noise, told)
    ones = torch.ones(4, 1, 8, 8, dtype=torch.float64)
    stem, *encoder = net.enc.values()
    skips = [stem(torch.cat([x, ones], 1))]
    for block in encoder:
        skips.append(block(skips[-1], emb))
    hint = branch.hint0(torch.cat([told["image"], ones], 1))
    hint = branch.hint1(torch.nn.functional.silu(hint) / 0.596)
    start = branch.stem(torch.cat([x, ones], 1))
    y = [math.cos(HINT_ANGLE) * start + math.sin(HINT_ANGLE) * hint]
    for block in branch.enc.values():
        y.append(block(y[-1], emb))
    joined = []
    for skip, feature, join in zip([*skips, skips[-1]], [*y, y[-1]], branch.joins, strict=True):
        phi = join.angles.reshape(1, -1, 1, 1)
        turned = torch.cos(phi) * skip + torch.sin(phi) * join.conv(feature)
        joined.append(turned * skip.norm(dim=1, keepdim=True) / turned.norm(dim=1, keepdim=True))
    x = joined.pop()
    for block in net.dec.values():
        if block.takes_skip:
            x = mp_cat(x, joined.pop(), 0.5)
        x = block(x, emb)
    expected = net.out_conv(x, gain=net.out_gain)
    # weights are normalized, and lengths taken, in float32
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_every_parameter_of_the_control_has_a_gradient_by_the_second_step():
    _, net = built(CONTROLS[:1], text=TEXT)
    net.requires_grad_(False)
    net.controls.requires_grad_(True)
    own = dict(net.controls.named_parameters())
    optimizer = torch.optim.Adam(own.values(), lr=0.01)
    x, c_noise, told = inputs(8)
    told["tokens"][0] = told["pooled"][0] = 0  # one image without text
    told = Conditioning(told)
    for step in range(2):
        optimizer.zero_grad()
        net(x, c_noise, told).square().mean().backward()
        silent = [name for name, p in own.items() if p.grad is None or not p.grad.any()]
        if step == 0:
            assert all(join.angles.grad.any() for join in net.controls["image"].joins)
        optimizer.step()
        normalize_weights_(net.controls)
    assert not silent


@pytest.mark.parametrize("angle", [0.3, -1.2, 3.0])
def test_a_join_keeps_the_length_of_every_pixel_even_if_features_are_related(angle):
    torch.manual_seed(0)
    join, x = Join(16), torch.randn(4, 16, 8, 8) * torch.rand(4, 1, 8, 8)
    join.angles.data.fill_(angle)
    with torch.no_grad():
        for features in (x, torch.randn_like(x), -x):
            found = join(x, features)
            assert not found.equal(x)
            torch.testing.assert_close(found.norm(dim=1), x.norm(dim=1), rtol=1e-5, atol=1e-6)
        blank = join(torch.zeros_like(x), torch.zeros_like(x))
    assert not blank.any()  # and no NaN


def test_files_and_configurations_say_which_images_are_followed():
    config = UNetConfig(**SHAPE, controls=CONTROLS)
    assert config.condition_names == ("label", "image", "depth")
    assert backbone_from_dict(config.to_dict()) == config
    assert "controls" not in UNetConfig(**SHAPE).to_dict()
    net = Precond(PrecondConfig(backbone=config))
    names = [name for name in net.state_dict() if "controls" in name]
    assert len(names) > 50 and all(name.startswith("unet.controls.") for name in names)
    assert len(net.backbone.blocks()) == len(built(())[0].blocks()) + 2 * len(net.backbone.enc) - 2


@pytest.mark.parametrize(
    "controls, message",
    [
        ([{"name": "label"}], "label is that of two conditions"),
        ([{"name": "a"}, {"name": "a"}], "a is that of two conditions"),
        ([{"name": "a.b"}], "must be an identifier"),
        ([{"channels": 0}], "must be from 1 to 65536"),
        ([3], "controls must be"),
        ([{"width": 3}], "is not a setting of Control"),
        ("image", "controls must be"),
    ],
)
def test_controls_that_cannot_be_are_refused(controls, message):
    values = {**UNetConfig(**SHAPE).to_dict(), "controls": controls}
    with pytest.raises(ValueError, match=message):
        backbone_from_dict(values)
