"""LoRA files made by peft, and by hand from the tables of their conventions."""

import json

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.interop.lora_files import MARK, read_lora, write_lora
from edm2lite.interop.lora_names import LayerNames
from edm2lite.network.low_rank import Factors
from edm2lite.network.mp_dit import MPDiTConfig
from edm2lite.network.unet import UNetConfig

# peft looks for patterns among layers, warns, and then applies them to parameters
pytestmark = pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys did not")

NAMES = LayerNames(
    {
        "unet.enc.8x8_block0.conv_res0": (6, 4, 3, 3),
        "unet.enc.8x8_block0.conv_skip": (6, 4, 1, 1),
        "unet.emb_label": (5, 10),
        "unet.a.b_c": (3, 3),
        "unet.a_b.c": (3, 3),
        "logvar_linear": (1, 8),
    },
    "unet",
)
CONV, SKIP, LINEAR = list(NAMES.shapes)[:3]


def factors(name, rank, seed=0):
    """Float32 factors [r, ...] and [out, r] of a layer."""
    generator = torch.Generator().manual_seed(seed)
    out, *inner = NAMES.shapes[name]
    down = torch.randn(rank, *inner, generator=generator)
    return down, torch.randn(out, rank, generator=generator)


def product(down, up, scale):
    """In float64 NumPy."""
    down, up = down.double().numpy(), up.double().numpy().reshape(len(up), -1)
    return scale * (up @ down.reshape(len(down), -1)).reshape(len(up), *down.shape[1:])


def check(found, name, expected):
    np.testing.assert_allclose(found.changes[name].delta(), expected, atol=2e-5)  # float32


def saved(folder, tensors, name="a.safetensors", **metadata):
    save_file(
        {k: v.clone().contiguous() for k, v in tensors.items()}, folder / name, metadata or None
    )
    return folder / name


def kohya(flat, down, up, alpha=None):
    up = up[:, :, None, None] if down.ndim == 4 else up
    stem = f"lora_unet_{flat}"
    more = {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha)}
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, **more}


def refused(path, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_lora(path, NAMES)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_file_of_kohya(tmp_path, dtype):
    parts = {CONV: (*factors(CONV, 4), 2.0), SKIP: (*factors(SKIP, 2), 0.0)}
    parts |= {LINEAR: (*factors(LINEAR, 3), None)}
    tensors = {}
    flat = ("enc_8x8_block0_conv_res0", "enc_8x8_block0_conv_skip", "unet_emb_label")
    for stem, (down, up, alpha) in zip(flat, parts.values(), strict=True):
        tensors |= kohya(stem, down.to(dtype), up.to(dtype), alpha)
    found = read_lora(saved(tmp_path, tensors, ss_network_dim="4"), NAMES)
    assert found.tool == "kohya" and found.place is None and len(found.changes) == 3
    for (name, (down, up, _)), scale in zip(parts.items(), (0.5, 1.0, 1.0), strict=True):
        check(found, name, product(down.to(dtype), up.to(dtype), scale))


def test_a_file_of_kohya_in_a_file_of_torch(tmp_path):
    down, up = factors(LINEAR, 3)
    torch.save(kohya("emb_label", down, up), tmp_path / "a.pt")
    check(read_lora(tmp_path / "a.pt", NAMES), LINEAR, product(down, up, 1))


def test_names_of_kohya_are_never_split(tmp_path):
    down, up = torch.ones(1, 3), torch.ones(3, 1)
    refused(saved(tmp_path, kohya("a_b_c", down, up)), r"unet.a.b_c and unet.a_b.c")
    refused(saved(tmp_path, kohya("a_b", down, up)), "must adapt layers that the network has")
    refused(saved(tmp_path, kohya("enc.8x8_block0.conv_res0", down, up)), "it has no enc.8x8_blo")
    tensors = kohya("emb_label", *factors(LINEAR, 1)) | kohya("unet_emb_label", *factors(LINEAR, 1))
    refused(saved(tmp_path, tensors), "must adapt each layer once")
    change = Factors(down, up)
    with pytest.raises(ValueError, match=r"a_b_c would be unet.a.b_c and unet.a_b.c"):
        write_lora(tmp_path / "new", "kohya", {"unet.a.b_c": change}, NAMES)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("keys", [("lora_A", "lora_B"), ("lora.down", "lora.up")])
def test_files_of_diffusers(tmp_path, keys):
    parts = {CONV: factors(CONV, 4), LINEAR: factors(LINEAR, 3)}
    tensors = {}
    for name, (down, up) in parts.items():
        tensors[f"{name}.{keys[0]}.weight"] = down  # "unet." is the part of the pipeline
        tensors[f"{name}.{keys[1]}.weight"] = up[:, :, None, None] if down.ndim == 4 else up
    found = read_lora(saved(tmp_path, tensors), NAMES)
    assert found.tool == "diffusers" and found.place is None
    for name, (down, up) in parts.items():
        check(found, name, product(down, up, 1.0))
    config = {"unet.r": 4, "unet.lora_alpha": 6, "unet.rank_pattern": {"emb_label": 3}}
    config |= {"unet.alpha_pattern": {"emb_label": 12}, "text_encoder.r": 7}
    path = saved(tmp_path, tensors, lora_adapter_metadata=json.dumps(config))
    for name, scale in ((CONV, 1.5), (LINEAR, 4.0)):
        check(read_lora(path, NAMES), name, product(*parts[name], scale))
    tensors["unet.emb_label.alpha"] = torch.tensor(6.0)
    refused(saved(tmp_path, tensors, lora_adapter_metadata=json.dumps(config)), "scales once")
    check(read_lora(saved(tmp_path, tensors), NAMES), LINEAR, product(*parts[LINEAR], 2.0))


def transformer():
    torch.manual_seed(0)
    config = MPDiTConfig(img_resolution=8, img_channels=1, label_dim=3, width=32, num_heads=2,
                         num_blocks=1)  # fmt: skip
    net = Precond(PrecondConfig(backbone=config)).eval()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if "gain" in name or "angles" in name:
                value.uniform_(0.2, 0.8)
    return net


TARGETS = ["attn.qkv.weight", "mlp.fc1.weight", "emb_label.weight"]


def stock_peft(net, **options):
    """An adapted model of peft with random factors; ``net`` is changed in place by peft."""
    config = LoraConfig(target_modules=[], target_parameters=TARGETS, **options)
    model = get_peft_model(net, config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "lora_" in name:
                value.normal_(0, 0.4)
    return model.eval()


@pytest.mark.parametrize(
    "options",
    [
        {"r": 3, "lora_alpha": 6},
        {"r": 4, "lora_alpha": 6, "use_rslora": True},
        {
            "r": 3,
            "rank_pattern": {"mlp.fc1(.weight)?": 5},
            "alpha_pattern": {r".*.qkv(\.weight)?": 2},
        },
    ],
)
def test_a_folder_of_stock_peft_has_the_output_of_peft(tmp_path, options):
    theirs, net = stock_peft(transformer(), **options), transformer()
    theirs.save_pretrained(tmp_path / "adapter")
    found = read_lora(tmp_path / "adapter", LayerNames.of(net, "backbone"))
    assert found.tool == "peft" and found.place == "inside-wn"
    assert len(found.changes) == 3
    x, told = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        base = net(x, 1.0, told)
        for name, change in found.changes.items():
            net.get_submodule(name).weight += change.delta()
        expected, ours = theirs(x, 1.0, told), net(x, 1.0, told)
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def test_stock_peft_loads_what_is_written(tmp_path):
    net, change = transformer(), {}
    names = LayerNames.of(net, "backbone")
    for name, rank, scale in (("backbone.layers.0.mlp.fc1", 2, 0.5), ("backbone.emb_label", 3, 2)):
        out, inner = names.shapes[name]
        change[name] = Factors(torch.randn(rank, inner), torch.randn(out, rank), scale)
    write_lora(tmp_path / "adapter", "peft", change, names)
    theirs = PeftModel.from_pretrained(transformer(), str(tmp_path / "adapter")).eval()
    x, told = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    with torch.no_grad():
        for name, c in change.items():
            net.get_submodule(name).weight += c.delta()
        torch.testing.assert_close(theirs(x, 1.0, told), net(x, 1.0, told), atol=1e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="adapter must not exist"):
        write_lora(tmp_path / "adapter", "peft", change, names)


@pytest.mark.parametrize("tool", ["kohya", "peft", "diffusers"])
@pytest.mark.parametrize("place", ["inside-wn", "outside-wn"])
def test_what_is_written_is_read_bit_for_bit(tmp_path, tool, place):
    config = UNetConfig(
        img_resolution=8, img_channels=1, label_dim=3, model_channels=16, channel_mult=(1,),
        num_blocks=1, attn_resolutions=(8,), head_channels=16,
    )  # fmt: skip
    names = LayerNames.of(Precond(PrecondConfig(backbone=config)), "unet")
    assert {"logvar_linear", "unet.emb_label", "unet.out_conv"} <= names.shapes.keys()
    changes = {}
    for i, (name, shape) in enumerate(names.shapes.items()):  # all ranks and scales differ
        down = torch.randn(1 + i % 3, *shape[1:])
        changes[name] = Factors(down, torch.randn(shape[0], len(down)), 2.0 ** (i % 4 - 2))
    path = write_lora(tmp_path / "a", tool, changes, names, place=place, metadata={"note": "x"})
    found = read_lora(path, names)
    assert (found.tool, found.place, found.metadata["note"]) == (tool, place, "x")
    assert found.changes.keys() == changes.keys()
    for name, change in changes.items():
        assert found.changes[name].scale == change.scale
        assert found.changes[name].down.equal(change.down)
        assert found.changes[name].up.equal(change.up)


def test_keys_of_kohya_are_those_of_its_table(tmp_path):
    changes = {CONV: Factors(*factors(CONV, 4), 0.5), LINEAR: Factors(*factors(LINEAR, 2), 2.0)}
    path = write_lora(tmp_path / "a.safetensors", "kohya", changes, NAMES)
    tensors = load_file(path)
    stem = "lora_unet_enc_8x8_block0_conv_res0"
    assert tensors[f"{stem}.lora_up.weight"].shape == (6, 4, 1, 1)
    assert tensors[f"{stem}.alpha"].item() == 2 and tensors["lora_unet_emb_label.alpha"] == 4
    assert read_lora(path, NAMES).metadata.items() >= {
        (MARK, "inside-wn"), ("ss_network_module", "networks.lora"), ("ss_network_dim", "2"),
        ("ss_network_alpha", "4.0"), ("ss_network_args", '{"conv_dim": 4, "conv_alpha": 2.0}'),
    }  # fmt: skip


def test_factors_that_do_not_fit_are_refused(tmp_path):
    down, up = factors(LINEAR, 3)
    good = kohya("emb_label", down, up, 1.0)
    for change, message in (
        (
            kohya("emb_label", down[:, :9], up),
            r"weight of .* is \[5, 10\], and the file has factors",
        ),
        (kohya("emb_label", down, up[:4]), r"\[3, 10\] and \[4, 3\]; give the base"),
        (kohya("emb_label", down[:2], up), r"must hold factors of one rank"),
        (kohya("emb_label", down[0], up), r"must hold factors of one rank"),
        (kohya("emb_label", down[:0], up[:, :0]), r"must hold factors of one rank"),
        (kohya("emb_label", down * torch.nan, up), "must hold finite numbers"),
        (kohya("emb_label", down, up, torch.inf), "must hold finite numbers"),
        (kohya("emb_label", down, up, [1.0, 2.0]), "must have one number as alpha"),
        (kohya("emb_label", down.int(), up), "must hold finite numbers"),
        (kohya("enc_8x8_block0_conv_res0", down, up), r"\[6, 4, 3, 3\]"),
        ({k: v for k, v in good.items() if "up" not in k}, "lacks up of lora_unet_emb_label"),
        ({k: v for k, v in good.items() if "alpha" in k}, "lacks down and up"),
        ({}, "must hold factors of LoRA"),
    ):
        refused(saved(tmp_path, change), message)


def test_other_methods_are_refused(tmp_path):
    good, one = kohya("emb_label", *factors(LINEAR, 3), 1.0), torch.ones(1)
    diffusers = {
        f"unet.emb_label.{k}": v for k, v in (("lora_A.weight", one), ("lora_B.weight", one))
    }
    for tensors, message in (
        (good | {"lora_unet_emb_label.dora_scale": one}, "DoRA .*would break the magnitude of 1"),
        (diffusers | {"unet.emb_label.lora_magnitude_vector": one}, "those of DoRA"),
        (good | {"lora_unet_emb_label.lora_mid.weight": one}, "it is a Tucker decomposition"),
        (good | {"lora_unet_x.hada_w1_a": one}, "it is LoHa"),
        (good | {"lora_unet_x.lokr_w1": one}, "it is LoKr"),
        (good | {"lora_te_text_model_x.lora_up.weight": one}, "adapts a text encoder too"),
        (diffusers | {"text_encoder.x.lora_A.weight": one}, "adapts a text encoder too"),
        (
            good | {"lora_unet_emb_label.diff_b": one},
            "nothing else, it holds lora_unet_emb_label.d",
        ),
        (good | {"emb_label.lora_up.weight": one}, "must name layers as lora_unet_"),
        ({"weight": one}, "must hold factors of LoRA and nothing else"),
    ):
        refused(saved(tmp_path, tensors), message)
    refused(saved(tmp_path, good, **{MARK: "beside"}), "must say inside-wn or outside-wn")


def test_configurations_of_peft_that_do_more_are_refused(tmp_path):
    down, up = factors(LINEAR, 3)
    stem = "base_model.model.unet.emb_label"
    tensors = {f"{stem}.lora_A.weight": down, f"{stem}.lora_B.weight": up}
    path = saved(tmp_path, tensors, "adapter_model.safetensors")
    config = tmp_path / "adapter_config.json"
    refused(path, "must have adapter_config.json beside it")
    for more, message in (
        ({"use_dora": True}, "its use_dora is True; train it without"),
        ({"bias": "all"}, "its bias is all"),
        ({"modules_to_save": ["x"]}, "its modules_to_save is list"),
        ({"peft_type": "LOHA"}, "its peft_type is LOHA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 changed the base"),
        ({"r": 4}, "states, 4 for unet.emb_label, and has factors of rank 3"),
        ({"r": "3"}, "must have a number as r, has 3"),
        ({"rank_pattern": {"(a+)+": 3}}, r"must name layers in rank_pattern, .*\(a\+\)\+"),
        ({"rank_pattern": {"a.*.*.*b": 3}}, "at most 2 repetitions"),
        ({"alpha_pattern": {"a**": 3}}, "must name layers in alpha_pattern"),
        ({"alpha_pattern": {"a": "x"}}, "must have numbers by the names of layers"),
        ({"target_parameters": "x"}, "must have a list of names"),
    ):
        config.write_text(json.dumps({"r": 3, "lora_alpha": 6, **more}))
        refused(path, message)
    config.write_text("{")
    with pytest.raises(ValueError, match=r"adapter_config.json must be JSON"):
        read_lora(path, NAMES)
    config.write_text(json.dumps({"r": 3, "lora_alpha": 6, "target_modules": ["emb_label"]}))
    found = read_lora(path, NAMES)
    check(found, LINEAR, product(down, up, 2.0))
    assert found.place is None  # an adapter outside of the layer, as peft makes it by default


def test_places_without_a_file_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read_lora(tmp_path / "no", NAMES)
    with pytest.raises(FileNotFoundError, match=r"must hold adapter_model.safetensors .*neither"):
        read_lora(tmp_path, NAMES)
    down, up = factors(LINEAR, 1)
    tensors = {"unet.emb_label.lora_A.weight": down, "unet.emb_label.lora_B.weight": up}
    saved(tmp_path, tensors, "pytorch_lora_weights.safetensors")
    assert read_lora(tmp_path, NAMES).tool == "diffusers"
    with pytest.raises(ValueError, match="must be the name of a file, it is a folder"):
        write_lora(tmp_path, "kohya", {LINEAR: Factors(down, up)}, NAMES)
