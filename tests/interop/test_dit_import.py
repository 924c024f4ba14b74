"""Checkpoints of DiT and SiT: as they were released, damaged, hostile, and from diffusers."""

import argparse
import json
import zipfile

import pytest
import torch
from click.testing import CliRunner

from edm2lite.diffusion.ddpm import levels
from edm2lite.interop.dit import import_file, import_folder
from edm2lite.interop.dit_names import to_diffusers
from edm2lite.interop.torch_zip import MAX_STORAGES, read_torch
from edm2lite.models.hub import save_pretrained
from edm2lite.models.loading import load
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.dit import DiTConfig
from edm2lite.network.patches import sine_positions
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.recipes import recipe
from edm2lite.sampling.settings import Sampling
from edm2lite.tools.edm2lite import main as edm2lite

SHAPE = DiTConfig(
    img_resolution=8, img_channels=4, label_dim=3, patch_size=4, width=384, num_blocks=1,
    num_heads=6, mlp_ratio=1, time_scale=1.0, predicts_variance=True,
)  # fmt: skip


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = SHAPE.build().requires_grad_(False)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return net


@pytest.fixture
def released(net):
    """The state dict under its released names."""
    fixed = {"pos_embed": sine_positions(2, 2, 2, 384, torch.device("cpu"))[None]}
    tensors = {n.replace("layers.", "blocks."): v for n, v in net.state_dict().items()}
    return {**fixed, **tensors}


def saved(tmp_path, value, name="DiT-S-4.pt"):
    torch.save(value, tmp_path / name)
    return tmp_path / name


def test_a_released_checkpoint_becomes_the_denoiser_of_ddpm(net, released, tmp_path):
    model = load(import_file(saved(tmp_path, released)))
    assert model.net.config.backbone == SHAPE and model.num_classes == 3
    assert model.metadata["license"] == "cc-by-nc-4.0"
    step, labels = 640, torch.tensor([2, -1])
    sigma = levels("linear")[step]
    noisy = torch.randn(2, 4, 8, 8)  # z, of variance 1 in all
    predicted = net(noisy, torch.full((2,), float(step)), Conditioning({"label": labels}))
    x = noisy * (1 + sigma**2).sqrt().float()
    D_x = model.net(x, sigma, labels)
    torch.testing.assert_close(D_x, x - sigma.float() * predicted, rtol=0, atol=1e-4)
    card = save_pretrained(model, tmp_path / "exported") / "README.md"
    assert "license: cc-by-nc-4.0" in card.read_text()
    with pytest.raises(ValueError, match="states cc-by-nc-4.0, got mit"):
        save_pretrained(model, tmp_path / "other", license="mit")


def test_a_training_state_gives_its_averaged_weights(released, tmp_path):
    state = {
        "model": {name: value + 1 for name, value in released.items()},
        "ema": {name: torch.nn.Parameter(value) for name, value in released.items()},
        "opt": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]},
        "args": argparse.Namespace(model="DiT-S/4", results_dir="results"),
    }
    model = load(import_file(saved(tmp_path, state)))
    weight = model.net.get_parameter("backbone.final_layer.linear.weight")
    assert weight.equal(released["final_layer.linear.weight"])


def test_sit_denoises_a_gaussian_by_its_known_velocity(released, tmp_path):
    """Data N(0, s^2), z = t y + (1 - t) n: v(z, t) = z (t s^2 - 1 + t) / (t^2 s^2 + (1 - t)^2)."""
    model = load(import_file(saved(tmp_path, released, "SiT-S-4.pt")))
    assert model.metadata["license"] == "mit"
    s, seen = 1.7, []

    class Velocity(torch.nn.Module):
        def forward(self, z, t, conditioning):
            seen.append(t[0].item())
            t = t[:, None, None, None]
            return z * (t * s**2 - (1 - t)) / (t**2 * s**2 + (1 - t) ** 2)

    model.net._modules["backbone"] = Velocity()
    for sigma in (0.05, 0.8, 30.0):
        x = torch.randn(2, 4, 8, 8) * (s**2 + sigma**2) ** 0.5
        D_x = x * s**2 / (s**2 + sigma**2)
        torch.testing.assert_close(model.net(x, sigma), D_x, rtol=1e-4, atol=1e-4)
    assert seen == pytest.approx([1 / 1.05, 1 / 1.8, 1 / 31])  # 1 is data


def test_a_checkpoint_must_say_what_it_is(released, tmp_path):
    path = saved(tmp_path, released, "net.pt")
    with pytest.raises(ValueError, match="does not say what it was trained as"):
        import_file(path)
    done = CliRunner().invoke(
        edm2lite, ["import", str(path), "--family", "sit", "--license", "mit", "--vae", "here"]
    )
    assert done.exit_code == 0, done.output
    model = load(tmp_path / "net.safetensors")
    assert model.encoder.vae == "here" and model.net.config.parametrization == "sit"
    with pytest.raises(ValueError, match="must go to a new file"):
        import_file(path, family="dit")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"blocks.0.attn.proj.bias": None}, "blocks.0.attn.proj.bias is missing"),
        ({"t_embedder.mlp.2.weight": None, "blocks.0.mlp.fc2.bias": None},
         r"t_embedder.mlp.2.weight is missing"),
        ({"pos_embed": None}, "pos_embed is missing"),
        ({"pos_embed": torch.zeros(1, 4, 384)}, "pos_embed is not the fixed one"),
        ({"blocks.0.mlp.fc2.weight": torch.zeros(384, 768)}, r"one DiT: blocks.0.mlp.fc2.weight "
         r"should be \[384, 384\] and is \[384, 768\]"),
        ({"blocks.1.mlp.fc2.bias": torch.zeros(384)}, "blocks.1.attn.qkv.weight is missing"),
        ({"caption.weight": torch.zeros(1)}, "it also has caption.weight"),
        ({"final_layer.linear.bias": torch.full((128,), torch.nan)}, "finite weights, final_layer"),
        ({"x_embedder.proj.weight": torch.zeros(96, 4, 4, 4)}, r"known width .*, its width is 96"),
        ({"x_embedder.proj.bias": torch.zeros(384).long()}, "floating-point numbers of 16 or 32"),
        ({"x_embedder.proj.bias": [1.0]}, "must hold a tensor as x_embedder.proj.bias"),
    ],
)  # fmt: skip
def test_incomplete_and_mixed_up_checkpoints_name_the_tensor(change, message, released, tmp_path):
    tensors = {k: v for k, v in {**released, **change}.items() if v is not None}
    path = saved(tmp_path, tensors)
    with pytest.raises(ValueError, match=message) as refused:
        import_file(path)
    assert str(refused.value).startswith(str(path)) and "\n" not in str(refused.value)
    assert not path.with_suffix(".safetensors").exists()


class Call:
    """An object whose pickle asks for a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def rewritten(path, change):
    """The archive with its entries passed through ``change(name, data) -> {name: data}``."""
    with zipfile.ZipFile(path) as archive:
        entries = [(i.filename, archive.read(i)) for i in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            for new, content in change(name, data).items():
                archive.writestr(new, content)
    return path


def test_hostile_files_are_refused_and_nothing_runs(tmp_path):
    trace = tmp_path / "ran"
    path = saved(tmp_path, {"w": Call(open, str(trace), "w")})
    with pytest.raises(ValueError, match=r"asks for (_?io|builtins)\.open, which does not belong"):
        import_file(path)
    path = saved(tmp_path, {"w": Call(torch.load, str(trace))})
    with pytest.raises(ValueError, match=r"asks for torch\.serialization\.load"):
        import_file(path)
    tensors = {"w": torch.ones(4), "v": torch.zeros(2)}
    tricks = {
        "promises 4 values in 12 bytes": lambda n, d: {n: d[:-4] if n.endswith("/0") else d},
        "the storage of w is missing": lambda n, d: {} if n.endswith("data/0") else {n: d},
        "has ../../data": lambda n, d: {n.replace("DiT-S-4", "../.."): d},
        "has /etc/data/7": lambda n, d: {n: d, **({"/etc/data/7": d} if "pkl" in n else {})},
        "one folder with data.pkl": lambda n, d: {n: d, **({"b/data/7": d} if "pkl" in n else {})},
        f"at most {MAX_STORAGES} storages": lambda n, d: {n: d} if "pkl" not in n else {
            n: d, **{f"DiT-S-4/data/{i}": b"" for i in range(9, MAX_STORAGES + 9)}},
        "little-endian": lambda n, d: {n: b"big" if n.endswith("byteorder") else d},
    }  # fmt: skip
    for message, change in tricks.items():
        with pytest.raises(ValueError, match=message.replace(".", r"\.")):
            file = read_torch(rewritten(saved(tmp_path, tensors), change))
            file.tensor(file.root["w"], "w")
    assert not trace.exists()


def test_damaged_archives_are_refused(tmp_path):
    path = saved(tmp_path, {"w": torch.arange(1000.0)})
    whole = path.read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"DiT-S-4.pt must be a file of torch.save"):
            read_torch(path)
    at = whole.index(torch.arange(1000.0)[500:].numpy().tobytes()[:64])
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(ValueError, match="has another checksum"):
        read_torch(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}." * 99)
    with pytest.raises(ValueError, match="data.pkl is compressed"):
        read_torch(path)
    with pytest.raises(FileNotFoundError, match="no file at"):
        read_torch(tmp_path / "none.pt")


def test_views_and_half_precision_are_read_as_they_are(tmp_path):
    matrix = torch.arange(6.0).reshape(2, 3)
    tensors = {"t": matrix.T, "row": matrix[1], "half": matrix.half(), "bf": matrix.bfloat16()}
    file = read_torch(saved(tmp_path, tensors))
    for name, value in tensors.items():
        got = file.tensor(file.root[name], name)
        assert got.equal(value) and got.dtype == value.dtype and got.is_contiguous()


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_folder_of_diffusers_gives_what_diffusers_gives(suffix, net, tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1,
        sample_size=8, patch_size=4, num_embeds_ada_norm=3,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(theirs.proj_out_2.weight)
    theirs.save_pretrained(tmp_path / "transformer", safe_serialization=suffix == "safetensors")
    (tmp_path / "model_index.json").write_text("{}")
    done = CliRunner().invoke(edm2lite, ["import", str(tmp_path), "--out", f"{tmp_path}/ours.st"])
    assert done.exit_code == 0, done.output
    model = load(tmp_path / "ours.st")
    x, steps = torch.randn(2, 4, 8, 8), torch.tensor([7, 951])
    with torch.no_grad():
        expected = theirs(x, timestep=steps, class_labels=torch.tensor([1, 3])).sample
    got = model.net.backbone.with_variance(
        x, steps.float(), Conditioning({"label": torch.tensor([1, -1])})
    )
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "transformer" / "config.json").read_text())
    for key, value, message in (
        ("norm_type", "layer_norm", "its norm_type is 'layer_norm'"),
        ("norm_eps", 0.1, "its norm_eps is 0.1"),
        ("_class_name", "UNet2DModel", "config.json is of something else"),
        ("num_layers", 2, "blocks.1.attn.qkv.weight is missing"),
    ):
        (tmp_path / "transformer" / "config.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(ValueError, match=message):
            import_folder(tmp_path, tmp_path / "again.safetensors")


def test_imported_networks_sample_by_every_solver_and_by_the_recipe(released, tmp_path):
    name = recipe("dit-xl-2-256-cfg").model
    out = import_file(saved(tmp_path, released, f"{name}.pt"))
    assert recipe("dit-xl-2-256-cfg").find(tmp_path) == (out, "unconditional")
    model = load(out)
    published = recipe("dit-xl-2-256-cfg").sampling
    assert len(published.levels()) == 251 and published.guided_channels == 3
    few = Sampling(
        solver="ancestral", sigmas=tuple(published.levels()[::50].tolist()), guidance=1.5,
        guided_channels=3,
    )  # fmt: skip
    for sampling in (few, Sampling(num_steps=3, solver="dpmpp_2m", guidance=1.5)):
        generator = ImageGenerator(model, range(2), sampling=sampling, guide="unconditional")
        denoise = generator._denoiser(model.net, None, generator.seed_conditioning)
        x = sampling.solve(denoise, torch.randn(2, 4, 8, 8) * 80, lambda: torch.randn(2, 4, 8, 8))
        assert x.shape == (2, 4, 8, 8) and x.isfinite().all()


def test_names_go_both_ways_for_released_weights(released):
    ours = {n.replace("blocks.", "layers."): v for n, v in released.items() if n != "pos_embed"}
    assert len(to_diffusers(ours)) == len(ours) + 2 * 2  # q, k and v apart, weight and bias
