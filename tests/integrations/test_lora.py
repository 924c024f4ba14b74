"""Merged deltas of LoRA against matrix products in float64, and what else may not train."""

import numpy as np
import pytest
import torch
from loops import average
from peft import LoraConfig, get_peft_model
from torch import nn

from edm2lite.ema import PowerFunctionEMA
from edm2lite.integrations.lora import add_deltas, merged_deltas
from edm2lite.network.layers import MPConv


def base():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))


def adapted(**options):
    return get_peft_model(base(), LoraConfig(r=2, lora_alpha=6, target_modules=["0"], **options))


def train(net, steps=5):
    """Trains LoRA and yields (samples seen, s B A in float64) after every step."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.3)
    x, y = torch.randn(20, 5), torch.randn(20, 3)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
        values = {
            n.split(".")[-3]: p.detach().double() for n, p in net.named_parameters() if "lora" in n
        }
        product = (6 / 2) * values["lora_B"] @ values["lora_A"]
        yield 20 * step, {"0.weight": product.numpy()}


def test_the_average_of_merged_deltas_is_that_of_the_products(tmp_path):
    net = adapted()
    ema, walk = PowerFunctionEMA(merged_deltas(net)), []
    for nimg, deltas in train(net):
        ema.update(nimg, merged_deltas(net))
        walk.append((nimg, deltas))
    expected = average(walk, 100, 0.10)
    deltas = ema.state_dict_of(0.10)
    assert list(deltas) == ["0.weight"]
    np.testing.assert_allclose(deltas["0.weight"], expected["0.weight"], atol=1e-6)  # float32
    merged = base()
    add_deltas(merged, deltas)
    torch.testing.assert_close(merged[0].weight, base()[0].weight + deltas["0.weight"])
    assert all(
        a.equal(b) for a, b in zip(merged[2].parameters(), base()[2].parameters(), strict=True)
    )
    with pytest.raises(ValueError, match="give the base model, without LoRA"):
        add_deltas(net, deltas)


def test_a_parameter_that_is_adapted_by_itself_has_its_name():
    """LoRA inside a layer, before the layer normalizes its weight."""
    net = nn.ModuleDict({"layer": MPConv(5, 6)})
    targets = LoraConfig(r=2, lora_alpha=6, target_modules=[], target_parameters=["layer.weight"])
    model = get_peft_model(net, targets)
    factors = {n.split(".")[-3]: p for n, p in model.named_parameters() if "lora_" in n}
    nn.init.ones_(factors["lora_B"])
    (delta,) = merged_deltas(model).items()
    assert delta[0] == "layer.weight"
    torch.testing.assert_close(delta[1], 3 * factors["lora_B"] @ factors["lora_A"])
    merged, x = MPConv(5, 6), torch.randn(2, 5)
    merged.load_state_dict({"weight": net["layer"].get_base_layer().weight})
    add_deltas(merged, {"weight": delta[1]})
    torch.testing.assert_close(merged(x), model.base_model.model["layer"](x))


def test_what_is_more_than_a_product_is_refused():
    with pytest.raises(ValueError, match="LoRA layers of peft named 'default', found none"):
        merged_deltas(base())
    with pytest.raises(ValueError, match="named 'other'"):
        merged_deltas(adapted(), "other")
    with pytest.raises(ValueError, match="another kind .DoRA"):
        merged_deltas(adapted(use_dora=True))
    with pytest.raises(ValueError, match="another kind .DoRA, lora_bias"):
        merged_deltas(adapted(lora_bias=True))
    with pytest.raises(ValueError, match=r"these parameters are too: \['.*2.*weight'"):
        merged_deltas(adapted(modules_to_save=["2"]))
