"""DiT: counts of arXiv 2212.09748, outputs against diffusers, any size, classes and vectors."""

import dataclasses

import pytest
import torch
from backbones import BACKBONES

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.interop.dit_names import from_diffusers, to_diffusers
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.dit import DiTConfig
from edm2lite.network.flops import count_macs
from edm2lite.network.patches import positions, sine_positions

COUNTS = {  # parameters with the fixed positions, those that are trained, 1e9 multiply-accumulates
    "S/8": (33_148_160, 33_142_016, 0.3580), "S/4": (32_945_024, 32_920_448, 1.4126),
    "S/2": (32_963_360, 32_865_056, 6.0557), "B/8": (130_881_536, 130_869_248, 1.4175),
    "B/4": (130_475_648, 130_426_496, 5.5652), "B/2": (130_512_416, 130_315_808, 23.0051),
    "L/8": (458_594_816, 458_578_432, 5.0114), "L/4": (458_053_760, 457_988_224, 19.6957),
    "L/2": (458_102_816, 457_840_672, 80.6976), "XL/8": (675_683_072, 675_664_640, 7.3924),
    "XL/4": (675_074_432, 675_000_704, 29.0437), "XL/2": (675_129_632, 674_834_720, 118.6214),
    "XL/2 at 512": (676_014_368, 674_834_720, 524.538),
}  # fmt: skip


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_published_sizes(name):
    preset, _, pixels = name.partition(" at ")
    config = DiTConfig.preset(
        preset, img_resolution=int(pixels or 256) // 8, img_channels=4, label_dim=1000,
        predicts_variance=True,
    )  # fmt: skip
    with torch.device("meta"):
        trained = sum(p.numel() for p in config.build().parameters())
        fixed = sine_positions(config.side, config.side, config.side, config.width, "meta").numel()
    assert (trained + fixed, trained) == COUNTS[name][:2]
    one, two = (count_macs(dataclasses.replace(config, num_blocks=n)).total for n in (1, 2))
    total = one + (config.num_blocks - 1) * (two - one)  # blocks are alike
    assert total / 1e9 == pytest.approx(COUNTS[name][2], abs=6e-4 if pixels else 5.1e-5)
    assert name != "S/8" or count_macs(config).total == total


def random_dit(**changes):
    """A DiT of few channels in the proportions of XL (heads of 72), no weight of which is 0."""
    shape = {"width": 144, "num_heads": 2, "num_blocks": 2, "patch_size": 2}
    config = DiTConfig(
        img_resolution=4, img_channels=4, label_dim=10, predicts_variance=True, time_scale=1.0,
        **{**shape, **changes},
    )  # fmt: skip
    torch.manual_seed(0)
    net = config.build()
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return net


@torch.no_grad()
def test_outputs_equal_those_of_diffusers_at_every_step_and_class():
    diffusers = pytest.importorskip("diffusers")
    ours = random_dit(freq_shift=1.0)
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=72, in_channels=4, out_channels=8, num_layers=2,
        sample_size=4, patch_size=2, num_embeds_ada_norm=10, norm_eps=1e-6,
    ).eval()  # fmt: skip
    named = to_diffusers(ours.state_dict())
    theirs.load_state_dict({**theirs.state_dict(), **named})
    assert set(named) == set(theirs.state_dict())
    back = from_diffusers(theirs.state_dict())
    assert set(back) == set(ours.state_dict())
    assert all(value.equal(back[name]) for name, value in ours.state_dict().items())

    steps, x = torch.arange(1000), torch.randn(1000, 4, 4, 4)
    labels = steps % 11  # in diffusers the null class is number 10
    expected = theirs(x, timestep=steps, class_labels=labels).sample
    told = Conditioning({"label": torch.where(labels == 10, -1, labels)})
    got = ours.with_variance(x, steps.float(), told)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
    assert ours(x, steps.float(), told).equal(got[:, :4])
    assert ours(x[:9], steps[:9].float(), Conditioning()).equal(
        ours(x[:9], steps[:9].float(), Conditioning({"label": torch.full((9,), -1)}))
    )


def test_frequencies_of_the_noise_level_are_the_published_ones():
    waves = random_dit().t_embedder.waves(torch.tensor([700.0]))
    freqs = 10000 ** (-torch.arange(128).double() / 128)
    expected = torch.cat([(700 * freqs).cos(), (700 * freqs).sin()])
    torch.testing.assert_close(waves[0].double(), expected, rtol=0, atol=1e-4)


def test_names_that_diffusers_does_not_have_are_refused():
    tensors = to_diffusers(random_dit().state_dict())
    with pytest.raises(ValueError, match="has no caption.weight"):
        from_diffusers({**tensors, "caption.weight": torch.ones(1)})
    odd = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    with pytest.raises(ValueError, match=f"must share the embedding .*, {odd} differs"):
        from_diffusers({**tensors, odd: tensors[odd] + 1})
    del tensors["transformer_blocks.1.attn1.to_v.bias"]
    with pytest.raises(ValueError, match="transformer_blocks.1.attn1.to_v.bias is missing"):
        from_diffusers(tensors)


@pytest.mark.parametrize("name", ["dit", "mp_dit"])
def test_images_of_any_size_and_one_patch_high(name):
    net = BACKBONES[name].build()
    for height, width in ((8, 8), (4, 16), (2, 2), (12, 8)):
        x = torch.randn(2, 2, height, width)
        assert net(x, torch.zeros(2), Conditioning()).shape == x.shape


def test_positions_are_whole_in_training_and_isotropic_elsewhere():
    rows, columns = positions(4, 4, side=4, device="cpu")
    assert rows.tolist() == columns.tolist() == [0, 1, 2, 3]
    rows, columns = positions(2, 8, side=4, device="cpu")  # as many patches: the same distances
    assert rows.diff().tolist() == [1] and set(columns.diff().tolist()) == {1}
    assert rows.mean() == columns.mean() == 1.5
    rows, columns = positions(8, 8, side=4, device="cpu")  # twice the side: half the distance
    assert set(rows.diff().tolist()) == {0.5}


def test_labels_may_be_vectors_and_vectors_may_be_added():
    config = DiTConfig(
        img_resolution=8, img_channels=1, label_dim=3, vectors={"ink": 2}, width=16, num_heads=2,
        num_blocks=1,
    )  # fmt: skip
    net = Precond(PrecondConfig(backbone=config)).eval()
    with torch.no_grad():
        for p in net.parameters():
            torch.nn.init.normal_(p, std=0.3)
    x, index = torch.randn(4, 1, 8, 8), torch.tensor([2, 0, -1, 1])
    ink = torch.randn(4, 2)
    told = net(x, 1.0, {"label": index, "ink": ink})
    vectors = torch.eye(4)[index][:, :3]
    torch.testing.assert_close(net(x, 1.0, {"label": vectors, "ink": ink}), told)
    assert not torch.allclose(net(x, 1.0, {"label": index}), told, atol=1e-3)
    null = net(x, 1.0, Conditioning({"label": index, "ink": ink}).unconditional())
    torch.testing.assert_close(null, net(x, 1.0))
    again = PrecondConfig.from_json(net.config.to_json())
    assert again == net.config


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"width": 20}, "width must be a multiple of 4 num_heads = 24, got 20"),
        ({"patch_size": 3}, "img_resolution must be a multiple of patch_size = 3, got 8"),
        ({"num_blocks": 0}, "num_blocks must lie between 1 and 65536, got 0"),
        ({"vectors": {"ink": 0}}, "vectors.ink must lie between 1 and 65536, got 0"),
        ({"time_scale": 0.0}, "time_scale must be positive, got 0"),
        ({"freq_shift": 128.0}, r"freq_shift must lie in \[0, 128\), got 128"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DiTConfig(img_resolution=8, img_channels=1, **changes)
    with pytest.raises(ValueError, match="a preset is one of S, B, L, XL .* got 'M/2'"):
        DiTConfig.preset("M/2", img_resolution=8, img_channels=1)
