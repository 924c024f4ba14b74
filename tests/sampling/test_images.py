"""Generated images: functions of seed, conditions and settings alone, to the last bit."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from sampling.generating import fail, images, noise_of, raw, save_net, solved_by_hand, succeed

from edm2lite.models.encoders import PixelEncoder
from edm2lite.models.loading import load
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel
from edm2lite.sampling.guidance import APG
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.levels import karras_sigmas
from edm2lite.sampling.settings import Sampling
from edm2lite.threads import map_in_threads


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(num_steps=3),
        Sampling(num_steps=4, S_churn=10.0),
        Sampling(num_steps=3, guidance=2.0, interval=(1, 2), apg=APG(), rescale=0.5),
    ],
)
def test_an_image_depends_on_its_seed_to_the_last_bit(names, sampling):
    model, guide = raw(names[0]), raw(names[1]) if sampling.guidance != 1 else None
    common = {"sampling": sampling, "guide": guide}
    together = images(model, range(80), **common)
    assert len(together) == 80 and len(together.unique(dim=0)) == 80
    order = [79, 7, 3, 66, 0]
    assert torch.equal(images(model, order, **common), together[order])
    assert torch.equal(images(model, [7], **common, batch_size=1), together[7:8])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(images(model, range(80), **common), together)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_a_network_without_labels_guides_in_the_same_call(names):
    sampling = Sampling(num_steps=3, guidance=1.5)
    model = raw(names[0])
    together = images(model, range(80), sampling=sampling, guide="unconditional")
    assert torch.equal(
        images(model, [75, 2], sampling=sampling, guide="unconditional"), together[[75, 2]]
    )
    assert (together - images(model, range(80), sampling=Sampling(num_steps=3))).abs().max() > 0.01


def test_images_are_those_of_the_sampler(names):
    """By hand for two seeds, up to rounding: noise from the seed, guidance, Heun's method."""
    model, guide = raw(names[0]), raw(names[1])
    sampling = Sampling(num_steps=5, guidance=1.8, interval=(2, 3))
    got = images(
        model,
        [11, 5],
        conditioning=Conditioning.of(torch.tensor([3, 8])),
        sampling=sampling,
        guide=guide,
    )
    labels = torch.tensor([3, 8])

    def denoise(x, sigma, step):
        D_x = model.net(x, sigma, labels)
        return 1.8 * D_x - 0.8 * guide.net(x, sigma, labels) if 2 <= step <= 3 else D_x

    expected = solved_by_hand(denoise, noise_of([11, 5]), karras_sigmas(5).tolist())
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_classes_are_drawn_from_the_seeds():
    label = ClassLabel(10)
    classes = label.drawn(range(2000)).tolist()
    assert label.drawn([1234, 7]).tolist() == [classes[1234], classes[7]]
    counts = np.bincount(classes, minlength=10)
    assert abs(counts - 200).max() < 60  # 4.5 standard deviations


def test_threads_keep_order_and_pass_errors_on():
    def square(i):
        if i == 70:
            raise ValueError("seventy")
        assert torch.get_num_threads() == 1
        return i * i

    assert list(map_in_threads(square, range(50), 3)) == [i * i for i in range(50)]
    with pytest.raises(ValueError, match="seventy"):
        list(map_in_threads(square, range(60, 90), 2))
    assert next(map_in_threads(square, range(10), 2)) == 0  # and may be left early


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"img_channels": 3}, "img_channels is 1, that of"),
        ({"img_resolution": 16}, "img_resolution is 8, that of"),
        ({"label_dim": 7}, r"\(10 classes\) or less, .* takes 7 classes"),
    ],
)
def test_guides_that_do_not_fit_are_refused(names, tmp_path, changes, message):
    guide = load(save_net(tmp_path / "guide.safetensors", **changes))
    with pytest.raises(ValueError, match=message):
        ImageGenerator(load(names[0]), [0], guide=guide, sampling=Sampling(guidance=2.0))


def test_an_unconditional_guide_sees_no_labels(names, tmp_path):
    model, guide = raw(names[0]), raw(save_net(tmp_path / "guide.safetensors", label_dim=0))
    labels = torch.tensor([3, 8])
    common = {
        "conditioning": Conditioning.of(labels),
        "sampling": Sampling(num_steps=3, guidance=2),
    }

    def denoise(x, sigma, step):
        return 2 * model.net(x, sigma, labels) - guide.net(x, sigma)

    expected = solved_by_hand(denoise, noise_of([11, 5]), karras_sigmas(3).tolist())
    got = images(model, [11, 5], guide=guide, **common)
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_a_network_without_its_labels_is_its_own_unconditional_guide(names):
    model, labels = raw(names[0]), torch.tensor([3, 8])

    def denoise(x, sigma, step):
        none = torch.tensor([-1, -1])
        return 2 * model.net(x, sigma, labels) - model.net(x, sigma, none)

    expected = solved_by_hand(denoise, noise_of([11, 5]), karras_sigmas(3).tolist())
    got = images(
        model,
        [11, 5],
        conditioning=Conditioning.of(labels),
        sampling=Sampling(num_steps=3, guidance=2),
        guide="unconditional",
    )
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)


def test_a_network_without_conditions_is_no_guide_of_itself(tmp_path):
    model = load(save_net(tmp_path / "net.safetensors", label_dim=0))
    with pytest.raises(ValueError, match="cannot be its own unconditional guide"):
        ImageGenerator(model, [0], guide="unconditional", sampling=Sampling(guidance=2.0))


def test_guides_of_another_encoder_or_word_are_refused(names, tmp_path):
    guide = load(save_net(tmp_path / "guide.safetensors", label_dim=0))
    other = dataclasses.replace(guide, encoder=PixelEncoder())
    for wrong, message in ((other, "another encoder"), ("weaker", "model or 'unconditional'")):
        with pytest.raises(ValueError, match=message):
            ImageGenerator(load(names[0]), [0], guide=wrong, sampling=Sampling(guidance=2.0))


def test_guidance_needs_a_guide(names):
    with pytest.raises(ValueError, match="needs a guide"):
        ImageGenerator(load(names[0]), [0], sampling=Sampling(guidance=2.0))


def test_images_that_are_not_numbers_are_an_error(tmp_path):
    model = load(save_net(tmp_path / "net.safetensors"))
    model.net.backbone.out_gain.fill_(1e6)  # beyond what float16 can hold
    images(model, [0, 1], sampling=Sampling(num_steps=2))
    with pytest.raises(ValueError, match="0 to 1 came out as NaN or infinite"):
        images(model, [0, 1], sampling=Sampling(num_steps=2, dtype="float16"))


@pytest.mark.parametrize("dtype, tolerance", [("bfloat16", 0.15), ("float16", 0.02)])
def test_other_dtypes_give_nearly_the_same_images(names, dtype, tolerance):
    # of values of standard deviation 0.5; 11 and 8 bits over some 30 layers
    plain = images(raw(names[0]), [0, 1], sampling=Sampling(num_steps=4))
    other = images(raw(names[0]), [0, 1], sampling=Sampling(num_steps=4, dtype=dtype))
    assert 0 < (plain - other).abs().max() < tolerance


def test_compiled_networks_give_the_same_images(tmp_path, monkeypatch):
    """One graph per network, traced by several threads; the C++ compiler itself would take long."""
    seen, graphs = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    def compile(net, **options):
        seen.append(options)
        torch._dynamo.reset()
        return compile_(net, backend=backend, **options)

    compile_ = torch.compile
    monkeypatch.setattr("torch.compile", compile)
    model = raw(save_net(tmp_path / "net.safetensors"))
    sampling = Sampling(num_steps=2, guidance=2.0, interval=(0, 0))
    common = {"sampling": sampling, "guide": "unconditional"}
    plain = images(model, range(80), **common)
    compiled = images(model, range(80), **common, compiled=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-5)
    assert seen == [{"fullgraph": True, "dynamic": False}]
    # A smaller last batch is filled up: it needs no graph of its own, and no step after the first.
    needed = len(graphs)
    images(model, range(64), **common, compiled=True)
    assert needed == len(graphs) - needed == 2  # with the guide in the same call, and alone


def test_images_of_other_shapes_are_made_and_impossible_ones_refused(names, tmp_path):
    wide = images(raw(names[0]), range(3), sampling=Sampling(num_steps=2, size=(4, 12)))
    assert wide.shape == (3, 1, 4, 12)
    alone = images(raw(names[0]), [1], sampling=Sampling(num_steps=2, size=(4, 12)))
    assert alone.equal(wide[1:2])
    options = ("--seeds", "0-1", "--steps", 2)
    succeed(names[0], *options, "--size", "16x8", "--out", tmp_path / "tall")
    with Image.open(next((tmp_path / "tall").rglob("*.png"))) as image:
        assert image.size == (8, 16)
    line = fail(names[0], *options, "--size", "9x8", "--out", tmp_path / "odd")
    assert "multiples of 2, got 9 x 8" in line and not (tmp_path / "odd").exists()
    assert "height and width" in fail(names[0], "--size", "8", "--out", tmp_path / "odd", code=2)
