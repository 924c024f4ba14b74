"""Adapters from and for other tools, and what a merged model computes, on a tiny network."""

import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.interop.adapter_export import export_lora, export_weights, plain_weights
from edm2lite.interop.adapter_import import import_adapter, layer_names
from edm2lite.interop.lora_files import MARK, read_lora
from edm2lite.models.adapters import Adapter
from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import with_adapters
from edm2lite.models.model import Model
from edm2lite.network.unet import UNetConfig

CONFIG = UNetConfig(
    img_resolution=8, img_channels=1, label_dim=3, model_channels=16, channel_mult=(1,),
    num_blocks=1, attn_resolutions=(8,), head_channels=16,
)  # fmt: skip
LINEAR, CONV = "unet.emb_label", "unet.enc.8x8_block0.conv_res0"
QKV = "unet.enc.8x8_block0.attn_qkv"


def model(seed=0):
    torch.manual_seed(seed)
    net = Precond(PrecondConfig(backbone=CONFIG)).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "gain" in name:
                value.fill_(0.6)
    return Model(f"model {seed}", net.requires_grad_(False), PixelEncoder(), {})


BASE = model()


def adapter(*layers, rank=2, scale=0.5, seed=1, base=BASE):
    generator = torch.Generator().manual_seed(seed)
    tensors, shapes = {}, layer_names(BASE).shapes
    for layer in layers:
        out, *inner = shapes[layer]
        tensors[f"{layer}.down"] = torch.randn(rank, *inner, generator=generator)
        tensors[f"{layer}.up"] = torch.randn(out, rank, generator=generator)
    scales = dict.fromkeys(layers, scale)
    return Adapter("a", "lora", tensors, base.name, base.identity, scales)


def strengthened(found, strength):
    scales = {layer: scale * strength for layer, scale in found.scales.items()}
    return dataclasses.replace(found, scales=scales)


def output(found):
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    return found.net(x, 1.0, torch.tensor([0, 2]))


def rms_rows(weight):
    rows = weight.double().flatten(1).numpy()
    return np.sqrt((rows**2).mean(1, keepdims=True))


@pytest.mark.parametrize("tool", ["kohya", "peft", "diffusers"])
def test_there_and_back_is_the_same_adapter(tmp_path, tool):
    parts = [(adapter(LINEAR, CONV), 0.5), (adapter(CONV, QKV, rank=3, seed=2), -1.0)]
    found = export_lora(tmp_path / "a", tool, BASE, parts)
    assert found.error == 0 and found.ranks == {LINEAR: 2, CONV: 5, QKV: 3}
    back = import_adapter(tmp_path / "a", BASE)
    assert back.base_identity == BASE.identity and back.metadata["tool"] == tool
    both = [strengthened(*part) for part in parts]
    expected = output(with_adapters(BASE, both))
    assert (output(with_adapters(BASE, both[:1])) - expected).abs().max() > 1e-3
    torch.testing.assert_close(output(with_adapters(BASE, [back])), expected, atol=1e-5, rtol=1e-5)


def test_plain_weights_are_rows_of_fixed_length():
    found, state = plain_weights(BASE.net), BASE.net.state_dict()
    assert found.keys() == state.keys()
    for name, gain in ((LINEAR, 1.0), (CONV, 1 / 0.596), (QKV, 1.0)):
        weight = state[f"{name}.weight"].double()
        expected = weight.flatten(1).numpy() / rms_rows(weight) * gain / weight[0].numel() ** 0.5
        # eps = 1e-4 of the layers beside an RMS of 1, and 0.596 in three digits
        np.testing.assert_allclose(found[f"{name}.weight"].flatten(1), expected, rtol=3e-4)
    assert found["unet.out_gain"].equal(state["unet.out_gain"])


def test_a_change_outside_is_that_of_the_normalized_weights(tmp_path):
    given = [(adapter(LINEAR, CONV), 1.0)]
    exact = export_lora(tmp_path / "a", "kohya", BASE, given, place="outside-wn", rank=999)
    assert max(exact.errors.values()) < 1e-6 and exact.error < 1e-6
    file = read_lora(tmp_path / "a", layer_names(BASE))
    assert file.place == "outside-wn"
    merged = with_adapters(BASE, [given[0][0]])
    before, after = plain_weights(BASE.net), plain_weights(merged.net)
    for name, change in file.changes.items():
        expected = after[f"{name}.weight"] - before[f"{name}.weight"]
        torch.testing.assert_close(change.delta(), expected, atol=1e-6, rtol=1e-5)
    # a plain convolution with the sum is the merged layer
    layer, x = merged.net.get_submodule(CONV), torch.randn(1, 16, 8, 8)
    weight = before[f"{CONV}.weight"] + file.changes[CONV].delta()
    plain = torch.nn.functional.conv2d(x, weight, padding=1)
    torch.testing.assert_close(plain, layer(x), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="must add its changes inside weight normalization, as"):
        import_adapter(tmp_path / "a", BASE)


def test_errors_that_are_stated_are_those_of_the_file(tmp_path):
    given = [(adapter(LINEAR, CONV), 1.0)]
    found = export_lora(tmp_path / "a", "peft", BASE, given, place="outside-wn", rank=2)
    merged = with_adapters(BASE, [given[0][0]])
    before, after = plain_weights(BASE.net), plain_weights(merged.net)
    missing, total = 0.0, 0.0
    for name, change in read_lora(tmp_path / "a", layer_names(BASE)).changes.items():
        delta = (after[f"{name}.weight"] - before[f"{name}.weight"]).double().numpy()
        left = np.linalg.norm(delta - change.delta().double().numpy()) ** 2
        size = np.linalg.norm(delta) ** 2
        assert found.errors[name] == pytest.approx((left / size) ** 0.5, rel=1e-4)
        missing, total = missing + left, total + size
    assert found.error == pytest.approx((missing / total) ** 0.5, rel=1e-4) and found.error > 0.1
    limited = export_lora(tmp_path / "b", "peft", BASE, given, place="outside-wn", max_error=0.05)
    assert all(error <= 0.05 for error in limited.errors.values())
    assert limited.ranks[CONV] > 2


def test_an_average_is_factorized(tmp_path):
    tensors = {f"{name}.delta": delta for name, delta in adapter(LINEAR, CONV).deltas().items()}
    average = Adapter("average", "lora", tensors, BASE.name, BASE.identity)
    with pytest.raises(ValueError, match="a rank or a largest error must be given for average"):
        export_lora(tmp_path / "a", "kohya", BASE, [(average, 1.0)])
    found = export_lora(tmp_path / "a", "kohya", BASE, [(average, 1.0)], rank=2)
    assert found.error < 1e-6 and set(found.ranks.values()) == {2}
    back = import_adapter(tmp_path / "a", BASE)
    for name, delta in average.deltas().items():
        torch.testing.assert_close(back.deltas()[name], delta, atol=1e-5, rtol=1e-5)


def test_weights_of_a_merged_model(tmp_path):
    merged = with_adapters(BASE, [adapter(CONV)])
    tensors = load_file(export_weights(tmp_path / "w.safetensors", merged))
    assert tensors[f"{CONV}.weight"].equal(plain_weights(merged.net)[f"{CONV}.weight"])
    assert not tensors[f"{CONV}.weight"].equal(plain_weights(BASE.net)[f"{CONV}.weight"])


def test_files_that_do_not_say_where_they_add_need_a_word(tmp_path):
    export_lora(tmp_path / "a", "kohya", BASE, [(adapter(CONV), 1.0)])
    tensors = load_file(tmp_path / "a")
    save_file(tensors, tmp_path / "b.safetensors")  # without metadata, as trained elsewhere
    with pytest.raises(ValueError, match="adds them where, it does not say; say inside-wn only"):
        import_adapter(tmp_path / "b.safetensors", BASE)
    found = import_adapter(tmp_path / "b.safetensors", BASE, place="inside-wn")
    assert found.deltas()[CONV].equal(adapter(CONV).deltas()[CONV])
    save_file(tensors, tmp_path / "c.safetensors", {MARK: "outside-wn"})
    with pytest.raises(ValueError, match="its changes are added outside-wn, got inside-wn"):
        import_adapter(tmp_path / "c.safetensors", BASE, place="inside-wn")


def test_what_does_not_go_together_is_refused(tmp_path):
    out, other = tmp_path / "a", model(seed=1)
    for given, options, message in (
        ([(adapter(CONV, base=other), 1.0)], {}, "must be used with the model that it was trained"),
        (
            [(adapter(CONV), 1.0)],
            {"place": "outside-wn"},
            "a rank or a largest error must be given",
        ),
        ([(adapter(CONV), 0.0)], {"rank": 2}, "these change nothing"),
        ([(adapter(CONV), 0.0)], {"rank": 2, "place": "outside-wn"}, "these change nothing"),
        (
            [(Adapter("c", "embedding", {"unet.x": torch.ones(2)}), 1.0)],
            {},
            "c must change weights",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export_lora(out, "kohya", BASE, given, **options)
    assert not out.exists()
    export_lora(out, "kohya", BASE, [(adapter(CONV), 1.0)])
    with pytest.raises(ValueError, match=r"a must be used with the model that it was made for"):
        import_adapter(out, other)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        import_adapter(tmp_path / "none", BASE)
