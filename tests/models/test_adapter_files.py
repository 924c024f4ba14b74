"""Adapter files, and models that they are added to."""

import json

import pytest
import torch
from click.testing import CliRunner

from edm2lite import generate, load
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.adapters import (
    Adapter,
    adapter_of,
    factorized,
    read_adapter,
    save_adapter,
)
from edm2lite.models.loading import with_adapters
from edm2lite.models.merging import merged
from edm2lite.models.strengths import parse_strength
from edm2lite.network.controlnet import Control
from edm2lite.network.text import UNetText
from edm2lite.network.unet import UNetConfig
from edm2lite.sampling.settings import Sampling
from edm2lite.tensorfile import save_tensors
from edm2lite.tools.generate import main

LAYERS = ("unet.emb_noise", "unet.enc.8x8_block0.conv_res1")


def adapter(base, seed=0, **parts):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in LAYERS:
        shape = base.net.get_submodule(layer).weight.shape
        tensors[f"{layer}.down"] = torch.randn(2, *shape[1:], generator=generator)
        tensors[f"{layer}.up"] = torch.randn(shape[0], 2, generator=generator)
    scales = dict.fromkeys(LAYERS, 0.5)
    return Adapter("a", "lora", tensors, base.name, base.identity, scales=scales, **parts)


@pytest.fixture
def base(run_dir):
    return load(run_dir)


def output(model):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return model.net(x, 0.7, torch.tensor([3, 7])).detach()


def test_adapters_add_up_and_strength_0_is_the_model_itself(base, tmp_path):
    one = save_adapter(tmp_path / "one.safetensors", adapter(base, 1))
    two = save_adapter(tmp_path / "two.safetensors", adapter(base, 2))
    assert with_adapters(base, [f"{one}:0", f"{two}:0.0"]) is base
    both = load(base.name, [f"{one}:0.25", f"{two}:-2"])
    for layer in LAYERS:
        expected = base.net.get_submodule(layer).weight.double()
        for file, strength in ((one, 0.25), (two, -2.0)):
            factors = read_adapter(file).factors()[layer]
            product = factors.up.double() @ factors.down.double().flatten(1)
            expected = expected + strength * 0.5 * product.reshape(expected.shape)
        found = both.net.get_submodule(layer).weight.double()
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    others = [n for n in base.net.state_dict() if n.removesuffix(".weight") not in LAYERS]
    assert all(both.net.state_dict()[n].equal(base.net.state_dict()[n]) for n in others)
    names = {base.identity, both.identity, load(base.name, [f"{one}:0.5"]).identity}
    assert len(names) == 3
    again = adapter_of(read_adapter(one).tensors, read_adapter(one).to_metadata(), "x")
    assert again.scales == adapter(base).scales and again.base_identity == base.identity


def test_the_file_of_an_adapter_is_a_model_with_its_base(base, tmp_path):
    file = save_adapter(tmp_path / "one.safetensors", adapter(base))
    assert output(load(file)).equal(output(load(base.name, [file])))
    with pytest.raises(ValueError, match="must be used with the model .*, got"):
        load(f"{base.name}@sigma_rel=0.1", [file])


def test_what_is_added_can_be_factorized_again(base):
    one, two = adapter(base, 1), adapter(base, 2)
    deltas = {f"{n}.delta": one.deltas()[n] + two.deltas()[n] for n in LAYERS}
    whole = Adapter("sum", "lora", deltas)
    exact, error = factorized(whole, rank=4)
    assert error < 1e-6 and set(exact.ranks.values()) == {4}
    thin, error = factorized(whole, rank=2)
    lost = sum((thin.deltas()[n] - deltas[f"{n}.delta"]).square().sum() for n in LAYERS)
    there = sum(delta.square().sum() for delta in deltas.values())
    assert error == pytest.approx((lost / there).sqrt().item(), rel=1e-4) and error > 0.1


def damaged(base, kind):
    found = adapter(base)
    tensors, layer = dict(found.tensors), "unet.emb_noise"
    if kind == "NaN":
        tensors[f"{layer}.up"] = tensors[f"{layer}.up"] * torch.nan
    if kind == "ranks":
        tensors[f"{layer}.up"] = tensors[f"{layer}.up"][:, :1].clone()
    if kind == "one factor":
        del tensors[f"{layer}.down"]
    if kind == "layer":
        tensors = {n.replace("emb_noise", "emb_nose"): t for n, t in tensors.items()}
    if kind == "shape":
        tensors[f"{layer}.down"] = tensors[f"{layer}.down"][:, :-1].clone()
    return tensors, found.to_metadata()


@pytest.mark.parametrize(
    "kind, message",
    [
        ("NaN", "must hold finite numbers, unet.emb_noise.up does not"),
        ("ranks", "must have factors of one rank for each layer, unet.emb_noise has"),
        ("one factor", "must have both factors of unet.emb_noise"),
        ("layer", "the model, which has no unet.emb_nose"),
        ("shape", "must add to weights of their own shape, unet.emb_noise has"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_written(
    kind, message, base, tmp_path
):
    file = save_tensors(tmp_path / "bad.safetensors", *damaged(base, kind))
    with pytest.raises(ValueError, match=message):
        load(base.name, [file])
    command = [base.name, "--adapter", str(file), "--out", str(tmp_path / "images")]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 1 and result.output.count("\n") <= 2
    assert not (tmp_path / "images").exists() or not list((tmp_path / "images").rglob("*.png"))


def test_parts_of_the_network_are_added_with_their_fields(base, tmp_path):
    width = base.net.config.backbone.emb_channels
    vector = {"unet.emb_learned.weight": torch.randn(1, width)}
    fields = {"learned_classes": [10]}
    file = save_adapter(
        tmp_path / "vector.safetensors",
        Adapter("v", "embedding", vector, base.name, base.identity, backbone=fields),
    )
    model = load(base.name, [file])
    assert model.num_classes == 11 and output(model).equal(output(base))
    assert with_adapters(base, [f"{file}:0", adapter(base)]).num_classes == 10
    with pytest.raises(ValueError, match="must have strength 0 or 1, got 0.5"):
        with_adapters(base, [f"{file}:0.5"])
    with pytest.raises(ValueError, match="must add different parts"):
        with_adapters(base, [file, file])
    for other in ({"learned_classes": [12]}, {"kind": "os:system"}, {"img_resolution": "x"}):
        wrong = Adapter("v", "embedding", vector, backbone=other)
        with pytest.raises(ValueError, match="configuration of v must be one"):
            with_adapters(base, [wrong])


def test_strength_leaves_the_copied_encoder_of_a_control_as_it_is():
    """Its attention to text has angles too, which were copied and not added."""
    shape = {
        "img_resolution": 8, "img_channels": 1, "label_dim": 3, "model_channels": 8,
        "channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (8,), "head_channels": 8,
        "text": UNetText(pooled=5, tokens=6, num_tokens=4, attn_resolutions=(8,)),
    }  # fmt: skip
    base = Precond(PrecondConfig(backbone=UNetConfig(**shape)))
    net = Precond(PrecondConfig(backbone=UNetConfig(**shape, controls=(Control(),))))
    own = {n: t.fill_(0.3) for n, t in net.state_dict().items() if ".controls." in n}
    fields = {"controls": [{"name": "image", "channels": 1}]}
    control = Adapter("c", "controlnet", own, backbone=fields)
    tensors, _ = merged(base.state_dict(), {"model": base.config.to_json()}, [(control, 0.5)])
    found = {n: t.unique().item() for n, t in tensors.items() if ".controls." in n}
    assert sum("text_attn.angles" in name for name in found) == 1
    for name, value in found.items():
        expected = 0.15 if ".joins." in name and name.endswith("angles") else 0.3
        assert value == pytest.approx(expected), name


def test_a_damaged_description_is_refused(base):
    tensors, metadata = damaged(base, None)
    for text in ("{", "[]", json.dumps({"kind": "lora"}), json.dumps({"scales": 1})):
        with pytest.raises(ValueError, match="description of x must have kind, base"):
            adapter_of(tensors, {**metadata, "adapter": text}, "x")
    with pytest.raises(ValueError, match="x must be an adapter"):
        adapter_of(tensors, {}, "x")
    with pytest.raises(ValueError, match="strength of an adapter must be finite"):
        parse_strength("a.safetensors:inf")


def test_generate_adds_adapters(base, tmp_path):
    file = save_adapter(tmp_path / "one.safetensors", adapter(base))
    sampling = Sampling(num_steps=2)
    plain, strong = (
        generate(base, range(2), classes=3, sampling=sampling, adapters=a) for a in ([], [file])
    )
    assert not plain.equal(strong)
    command = [base.name, "--seeds", "0-1", "--class", "3", "--steps", "2"]
    images = tmp_path / "images"
    done = CliRunner().invoke(main, [*command, "--adapter", str(file), "--out", str(images)])
    assert done.exit_code == 0, done.output
    settings = json.loads((images / "settings.json").read_text())
    assert with_adapters(base, [file]).identity in json.dumps(settings)
