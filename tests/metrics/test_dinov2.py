"""DINOv2: the published preprocessing, statistics that were made otherwise, and the network."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from edm2lite.metrics.dinov2 import VisionTransformer, network_input
from edm2lite.metrics.extractors import open_extractor
from edm2lite.metrics.feature_stats import FeatureStats, check_same_features, feature_stats
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.tools.edm2lite import main as edm2lite

NAME = "dinov2-vit-l-14"
SIZES = (32, 64, 96, 200, 224, 256, 320, 427)


def photographs(rng, num):
    """Crops of scikit-learn's two photographs (427 x 640) at several sizes."""
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images
    for i in range(num):
        photo, (height, width) = photos[i % 2], rng.choice(SIZES, 2)
        top, left = rng.integers(428 - height), rng.integers(641 - width)
        yield photo[top : top + height, left : left + width]


def textures(rng, num):
    """Noise, checkerboards, stripes, gratings and steps: what resizing is hard for."""
    for i in range(num):
        height, width = rng.choice(SIZES, 2)
        y, x = np.mgrid[:height, :width]
        cell = rng.integers(1, 9)
        gray = [
            rng.integers(0, 256, (height, width)),
            255 * ((y // cell + x // cell) % 2),
            255 * (x // cell % 2),
            127.5 + 127.5 * np.sin((x + rng.uniform(0, 2) * y) * rng.uniform(0.1, 3)),
            255 * (x + y > rng.integers(20, 200)),
        ][i % 5]
        yield np.stack([gray, 255 - gray, np.flip(gray)], axis=2).astype(np.uint8)


def test_dinov2_sees_images_as_the_published_metric_resizes_them():
    """dgm-eval: PIL's bicubic filter, which has antialiasing, on 8-bit images; then ImageNet's.

    Rows come first, by two calls, since Pillow 13 begins with the columns of some tall images.
    """
    rng = np.random.default_rng(0)
    images = [*photographs(rng, 100), *textures(rng, 100)]
    assert len(images) == 200
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    off = 0
    for image in images:
        rows = Image.fromarray(image).resize((224, len(image)), Image.Resampling.BICUBIC)
        resized = rows.resize((224, 224), Image.Resampling.BICUBIC)
        expected = (np.asarray(resized) / 255 - mean) / std
        seen = network_input(torch.from_numpy(image.copy()).permute(2, 0, 1)[None])[0]
        assert seen.dtype == torch.float32 and seen.shape == (3, 224, 224)
        levels = np.abs(seen.permute(1, 2, 0).numpy() - expected) * std * 255
        assert levels.max() < 1.01
        off += (levels > 0.5).mean() / len(images)
    assert off < 1e-5


@pytest.fixture
def weights(tmp_path):
    net = VisionTransformer(dim=64, depth=1)
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.05)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    return tmp_path / "vit.pth"


def test_the_extractor_of_fd_dinov2_computes_with_the_published_preprocessing(weights):
    extractor = open_extractor(NAME, weights)
    images = torch.randint(0, 256, (2, 3, 300, 80), dtype=torch.uint8)
    net = VisionTransformer.from_tensors(torch.load(weights, weights_only=True))
    with torch.no_grad():
        expected = net(network_input(images)).double().numpy()
    np.testing.assert_array_equal(extractor.features(images), expected)


def test_statistics_of_the_old_preprocessing_are_refused(tmp_path, weights):
    extractor = open_extractor(NAME, weights)
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    stats = feature_stats([images], extractor, "noise")
    assert stats.preprocessing == "bicubic-antialiased-224"
    again = FeatureStats.load(stats.save(tmp_path / "new.safetensors"))
    assert again.preprocessing == stats.preprocessing
    old = dataclasses.replace(stats, preprocessing="")  # as version 0.2 wrote it
    path = old.save(tmp_path / "old.safetensors")
    for refused in (lambda: FeatureStats.load(path), lambda: MetricInputs.of(old, None)):
        with pytest.raises(ValueError, match="resized unlike.*again with edm2lite evaluate stats"):
            refused()
    with pytest.raises(ValueError, match="of the same features"):
        check_same_features(stats, old)


def command(*words):
    return CliRunner().invoke(edm2lite, ["evaluate", *map(str, words)])


def test_npz_of_1024_features_is_not_taken_for_dinov2_without_a_question(tmp_path):
    rng = np.random.default_rng(0)
    path, out = tmp_path / "theirs.npz", tmp_path / "ours.safetensors"
    mean, rows = rng.standard_normal(1024), rng.standard_normal((64, 1024))
    np.savez(path, mu=mean, sigma=rows.T @ rows / 64)
    result = command("digits", "--ref", path, "--metrics", "fd_dinov2")
    assert result.exit_code == 1 and f"stats {path} --extractor {NAME} --out" in result.output
    wrong = command("stats", path, "--out", out)
    assert wrong.exit_code == 1 and "2048 features of inception-v3-compat" in wrong.output
    refused = command("stats", path, "--extractor", NAME, "--features", "--out", out)
    assert refused.exit_code == 1 and "without images" in refused.output and not out.exists()
    assert command("stats", path, "--extractor", NAME, "--out", out).exit_code == 0
    stats = FeatureStats.load(out)
    assert (stats.extractor, stats.preprocessing) == (NAME, "bicubic-antialiased-224")
    np.testing.assert_array_equal(stats.mean, mean)
    assert FeatureStats.load(path, NAME).digest == stats.digest


def test_dinov2_file_gives_class_tokens_of_its_own_size(tmp_path):
    torch.manual_seed(0)
    net = VisionTransformer(dim=128, depth=2)
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.05)
    torch.save(net.state_dict(), tmp_path / "vit.pth")
    extractor = open_extractor("dinov2-vit-l-14", tmp_path / "vit.pth", torch.device("cpu"))
    features = extractor.features(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    assert features.shape == (2, 128) and np.abs(features[0] - features[1]).max() > 1e-4


THEIR_NAMES = {  # of the network in transformers 4 or 5 -> in the released files
    r"embeddings\.(cls_token|mask_token)": r"\1",
    r"embeddings\.position_embeddings": "pos_embed",
    r"embeddings\.patch_embeddings\.projection": "patch_embed.proj",
    r"encoder\.layer|^layers?(?=\.)": "blocks",
    r"attention\.(attention\.)?(q_proj|query)": "attn.0",
    r"attention\.(attention\.)?(k_proj|key)": "attn.1",
    r"attention\.(attention\.)?(v_proj|value)": "attn.2",
    r"attention\.(output\.dense|o_proj)": "attn.proj",
    r"layer_scale(\d)\.lambda1": r"ls\1.gamma",
    r"layernorm": "norm",
}


def test_dinov2_equals_the_network_of_transformers():
    """On images of the size that the positions were learned on, which need no interpolation."""
    from transformers import Dinov2Config, Dinov2Model

    sizes = {"hidden_size": 128, "num_attention_heads": 2, "num_hidden_layers": 2}
    theirs = Dinov2Model(Dinov2Config(**sizes, image_size=56, patch_size=14)).eval()
    tensors = {}
    for name, value in theirs.state_dict().items():
        torch.nn.init.normal_(value, std=0.2)
        for pattern, ours in THEIR_NAMES.items():
            name = re.sub(pattern, ours, name)
        tensors[name] = value
    for place in [f"blocks.{i}.attn.{{}}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]:
        parts = [tensors.pop(place.format(part)) for part in range(3)]
        tensors[place.format("qkv")] = torch.cat(parts)
    x = torch.randn(2, 3, 56, 56)
    with torch.no_grad():
        expected = theirs(x).last_hidden_state[:, 0]
        torch.testing.assert_close(VisionTransformer.from_tensors(tensors)(x), expected)


def test_positions_that_do_not_vary_make_the_shape_of_a_plain_image_irrelevant():
    net = VisionTransformer(dim=64, depth=2, side=4)
    for value in net.parameters():
        torch.nn.init.normal_(value, std=0.2)
    with torch.no_grad():
        net.pos_embed[:, 1:] = net.pos_embed[:, 1:2]
        shapes = ((3, 4), (2, 6), (12, 1))  # 12 patches each
        tokens = [net(torch.full((1, 3, 14 * h, 14 * w), 0.3)) for h, w in shapes]
    torch.testing.assert_close(tokens[0], tokens[1])
    torch.testing.assert_close(tokens[0], tokens[2])
