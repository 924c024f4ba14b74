"""Model files of others: what they name is not called, and their numbers are bounded."""

import dataclasses
import json
import sys
import time
import types

import pytest
import torch
from torch import nn

import edm2lite
from edm2lite import kinds
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.kinds import Kinds
from edm2lite.metrics.extractors import open_extractor
from edm2lite.models.encoders import Encoder, PixelEncoder, encoder_from_json
from edm2lite.network.unet import UNetConfig
from edm2lite.strict_json import check_fields, parse, parse_object
from edm2lite.tensorfile import save_tensors

UNET = UNetConfig(
    img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,), num_blocks=1,
    attn_resolutions=(), head_channels=8,
)  # fmt: skip


@pytest.fixture
def hub(tmp_path):
    """Arguments with which torch.hub.load would run the code in a folder."""
    (tmp_path / "hubconf.py").write_text(
        f"import os\nos.mkdir({str(tmp_path / 'executed')!r})\ndef entry(**more): pass\n"
    )
    return {"repo_or_dir": str(tmp_path), "model": "entry", "source": "local"}


def model(path, **config):
    text = json.dumps({"backbone": UNET.to_dict(), **config})
    return save_tensors(path, {"a": torch.ones(1)}, {"format": "edm2lite.model/1", "model": text})


def test_a_model_file_cannot_have_a_function_called(hub, tmp_path):
    path = model(tmp_path / "m.safetensors", backbone={"kind": "torch.hub:load", **hub})
    with pytest.raises(ValueError, match=r"m.safetensors .*must be a subclass of BackboneConfig"):
        edm2lite.load(path)
    encoder = json.dumps({"kind": "torch.hub:load", **hub})
    net = Precond(PrecondConfig(backbone=UNET))
    path = net.save(tmp_path / "e.safetensors", {"encoder": encoder})
    with pytest.raises(ValueError, match=r"e.safetensors .*must be a subclass of Encoder"):
        edm2lite.load(path)
    assert not (tmp_path / "executed").exists()
    torch.hub.load(**hub)  # the trap works
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["os:remove", "shutil:rmtree", "builtins:print"])
def test_a_reference_cannot_have_any_loaded_function_called(name, tmp_path):
    weights = tmp_path / "weights"
    weights.touch()
    with pytest.raises(ValueError, match="a file cannot have it imported; give --plugin"):
        open_extractor(name, weights, trusted=False)
    assert weights.is_file()


def test_a_file_may_name_functions_of_modules_that_a_person_has_named(monkeypatch):
    own = types.ModuleType("features_of_a_user")
    own.flat = lambda weights: nn.Flatten()
    monkeypatch.setitem(sys.modules, own.__name__, own)
    monkeypatch.setattr(kinds, "_named", set())
    with pytest.raises(ValueError, match=r"edm2lite.kinds.plugin\('features_of_a_user'\)"):
        open_extractor("features_of_a_user:flat", trusted=False)
    kinds.plugin("features_of_a_user")
    assert isinstance(open_extractor("features_of_a_user:flat", trusted=False).module, nn.Flatten)


def test_classes_of_the_right_base_are_found_where_they_are_loaded(monkeypatch):
    own = types.ModuleType("encoders_of_a_user")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Own(PixelEncoder):
        kind: str = "encoders_of_a_user:Own"

    own.Own = Own
    text = Own(shift=1.0).to_json()
    with pytest.raises(ValueError, match="give --plugin encoders_of_a_user"):
        encoder_from_json(text)
    monkeypatch.setitem(sys.modules, own.__name__, own)
    assert encoder_from_json(text) == Own(shift=1.0)
    own.Own = dict
    with pytest.raises(ValueError, match="must be a subclass of Encoder"):
        encoder_from_json(text)
    assert Kinds("x", {}).find_class("edm2lite.models.encoders:Encoder", Encoder, trusted=False)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_blocks": 10**6}, "num_blocks must lie between 1 and 1024"),
        ({"num_blocks": 256}, "at most 512 blocks"),
        ({"num_blocks": 1.0}, "num_blocks must be int, found 1.0"),
        ({"head_channels": 0}, "head_channels must lie between"),
        ({"channel_mult": []}, "channel_mult must hold"),
        ({"channel_mult": [1] * 17}, "channel_mult must hold"),
        ({"channel_mult": [[1]]}, "channel_mult must be"),
        ({"clip_act": "x"}, "clip_act must be float, found 'x'"),
        ({"dropout": True}, "dropout must be float, found True"),
        ({"label_dim": None}, "label_dim must be int, found None"),
        ({"hooks": 1}, "'hooks' is not a setting of UNetConfig"),
        ({"kind": "unet", "img_channels": 2**62}, "img_channels must lie between"),
    ],
)
def test_settings_of_a_network_are_typed_and_bounded(tmp_path, changes, message):
    path = model(tmp_path / "m.safetensors", backbone={**UNET.to_dict(), **changes})
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        edm2lite.load(path)
    assert time.perf_counter() - begin < 1
    assert "m.safetensors" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dtype": "save"}, "dtype must be .*float32.*found 'save'"),
        ({"sigma_data": "1"}, "sigma_data must be float"),
        ({"sigma_data": 0}, "sigma_data must be positive"),
        ({"logvar_channels": 2**40}, "logvar_channels must lie between"),
        ({"parametrization": ["edm"]}, "parametrization must be"),
    ],
)
def test_settings_of_a_denoiser_are_typed_and_bounded(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        edm2lite.load(model(tmp_path / "m.safetensors", **changes))


def test_a_network_of_the_most_blocks_is_compared_with_its_file_at_once(tmp_path):
    most = {**UNET.to_dict(), "num_blocks": 255}
    path = model(tmp_path / "m.safetensors", backbone=most)
    begin = time.process_time()
    with pytest.raises(ValueError, match="does not fit its own model configuration"):
        edm2lite.load(path)
    assert time.process_time() - begin < 3


@pytest.mark.parametrize(
    "text, message",
    [
        ("[" * 100_000, "nested too deeply"), ('{"a":' * 100_000, "nested too deeply"),
        ("NaN", "not a finite number"), ("[-Infinity]", "not a finite"), ("1e999", "not a finite"),
        (str(2**63), "more than 64 bits"), ("9" * 10_000, "more than 64 bits"),
        ('{"a": 1, "a": 2}', "a name stands twice"), ("{}x", "Extra data"), (b"\xff", "decode"),
        ("", "Expecting value"),
    ],
)  # fmt: skip
def test_json_is_strict(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)


def test_json_gives_what_it_says():
    values = {"a": [1, -(2**63), 2**63 - 1, 0.5, 1e-320, None, True, "\u00fc"], "b": {"a": []}}
    assert parse(json.dumps(values)) == values == parse(json.dumps(values).encode())
    assert parse("[Infinity, -Infinity]", finite=False) == [float("inf"), -float("inf")]
    with pytest.raises(ValueError, match="it is a list"):
        parse_object("[]")


def test_fields_are_checked_against_their_types():
    @dataclasses.dataclass
    class Own:
        sizes: tuple[int, ...]
        name: str | None = None
        table: dict | None = None

    check_fields(Own, {"sizes": [1, 2], "name": None, "table": {"x": object()}})
    for values in ({"sizes": [1.5]}, {"sizes": 3}, {"name": 1}, {"other": 1}):
        with pytest.raises(ValueError, match="must be|is not a setting"):
            check_fields(Own, values)
