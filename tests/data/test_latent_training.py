"""The whole way: photos, data set, latents, training, average, generated images."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from data.encoding import encode
from PIL import Image
from tiny_run import TINY

from edm2lite.dataset import open_dataset
from edm2lite.dataset.collection import open_collection
from edm2lite.dataset.conversion import Conversion
from edm2lite.dataset.convert import convert_images
from edm2lite.ema import list_snapshots
from edm2lite.models.loading import load
from edm2lite.tensorfile import read_header
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.training.config import load_config
from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")
LATENT = ("net.backbone.img_channels=4", "net.backbone.label_dim=2", "encoder={kind: latents}")


def config(source, *overrides):
    """The digits preset at its smallest, for latents."""
    return load_config("digits", (*TINY, *LATENT, f"data.source={source}", *overrides))


def run(command, *words):
    result = CliRunner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def digests(folder):
    found = {i.path.name: i.header.digest for i in list_snapshots(folder)}
    return {**found, "last": read_header(folder / "last.safetensors").digest}


def test_the_whole_way_from_photos_to_generated_images(photos, vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(edm2lite, "dataset", "convert", photos, "photos.zip", "--resolution", 32)
    run(edm2lite, "dataset", "encode", "photos.zip", "latents", "--vae", vae, "--shard", 10)
    assert "24 images in latents, all intact" in run(edm2lite, "dataset", "verify", "latents")
    Trainer(config("latents", "total_nimg=640"), tmp_path / "run", CPU).train()

    described = open_dataset("latents").encoder
    resolved = load_config(str(tmp_path / "run" / "config.yaml"))
    assert resolved.encoder == described  # the numbers, not a reference to the data set
    run(reconstruct_ema, "run", "--sigma-rel", "0.1", "--out", "ema")
    file = next((tmp_path / "ema").glob("*.safetensors"))
    model = load(file)
    assert model.encoder == described
    for out, name in (("a", file), ("b", "run@sigma_rel=0.1")):
        run(edm2lite, "generate", name, "--seeds", "0-3", "--steps", 6, "--out", out)
    pictures = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "a").rglob("*.png"))]
    assert [p.shape for p in pictures] == [(32, 32, 3)] * 4 and all(p.std() > 0 for p in pictures)
    again = [np.asarray(Image.open(p)) for p in sorted((tmp_path / "b").rglob("*.png"))]
    assert max(np.abs(a.astype(int) - b).max() for a, b in zip(pictures, again, strict=True)) <= 2


def test_latents_have_the_standard_deviation_that_the_network_expects(latents, tmp_path):
    trainer = Trainer(config(latents), tmp_path / "run", CPU)
    x = torch.cat([trainer._encoded(trainer.batches.batch(32 * k)[0]) for k in range(20)])
    trainer.close()
    # 640 draws of 24 latents; their 64 pixels are correlated, hence not 1/sqrt of the count
    assert x.std().item() == pytest.approx(0.5, abs=0.02)
    assert x.mean((0, 2, 3)).abs().max() < 0.03


@pytest.fixture(scope="module")
def bucketed(photos, vae, tmp_path_factory):
    """Latents of several sizes, of which all sides are even."""
    folder = tmp_path_factory.mktemp("bucketed")
    options = Conversion(resolution=32, crop="buckets", bucket_step=8)
    convert_images(open_collection(photos), folder / "photos.zip", options)
    encode(folder / "photos.zip", folder / "latents", vae)
    return folder / "latents"


def test_latents_of_several_sizes_train_and_resume_bit_for_bit(bucketed, tmp_path):
    assert len(np.unique(open_dataset(bucketed).sizes, axis=0)) >= 3
    options = ("data.buckets=true", "data.label_dropout=0.1", "batch_size=16", "snapshot_nimg=80",
               "status_nimg=80", "checkpoint_nimg=80")  # fmt: skip

    def train(name, total):
        trainer = Trainer(config(bucketed, *options, f"total_nimg={total}"), tmp_path / name, CPU)
        trainer.train()

    train("whole", 320)
    train("cut", 160)
    train("cut", 320)
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
    lines = (tmp_path / "whole" / "stats.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (("encoder={kind: pixels}",), "holds latents, encoder.kind must be latents"),
        (("data.source=digits",), "digits holds pixels where encoder.kind is latents"),
        (("encoder.mean=[1,2]", "encoder.std=[1,1]"), r"set encoder.vae, .*\(4 values each\)"),
        (("encoder.sigma_data=1.0",), "encoder.sigma_data must be net.sigma_data = 0.5, got 1.0"),
        (("net.backbone.img_channels=8",), "img_channels must be the 4 channels"),
        (("net.backbone.img_resolution=16",), r"size of the images of .* \(8 x 8\), got 16"),
        (("data.flip=true",), "data.flip must be false"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    overrides, message, latents, tmp_path
):
    with pytest.raises(ValueError, match=message):
        Trainer(config(latents, *overrides), tmp_path / "run", CPU)
    assert not (tmp_path / "run").exists()


def test_sizes_without_buckets_and_odd_ones_are_refused(bucketed, photos, vae, tmp_path):
    with pytest.raises(ValueError, match="sizes; set data.buckets=true"):
        Trainer(config(bucketed), tmp_path / "run", CPU)
    with pytest.raises(ValueError, match="and . other sizes.*sides must be multiples of 2"):
        Trainer(config(bucketed, "data.buckets=true", "net.backbone.img_resolution=40"),
                tmp_path / "run", CPU)  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "override, message",
    [
        (
            "encoder={kind: jpeg}",
            "encoder.kind must be one of pixels, .*, or .* got 'jpeg'",
        ),
        ("encoder={kind: latents, scale: 3}", "unknown key encoder.scale"),
        (
            "encoder={kind: latents, std: [0.0], mean: [0.0]}",
            "encoder: encoder.std must be positive",
        ),
        ("encoder={kind: latents, input_range: 0..255}", "encoder.input_range must be"),
        ("encoder.scale=-1", "encoder: encoder.scale must be positive"),
        ("data.label_dropout=2", "data: label_dropout must lie in"),
    ],
)
def test_mistakes_in_the_configuration_are_explained(override, message):
    with pytest.raises(ValueError, match=message):
        load_config("digits", [override])


def test_a_resolved_configuration_of_latents_reads_back(latents, tmp_path):
    trainer = Trainer(config(latents), tmp_path / "run", CPU)
    trainer.close()
    path = tmp_path / "run" / "config.yaml"
    assert load_config(str(path)) == trainer.config
    Trainer(config(latents), tmp_path / "run", CPU)  # the short form still names the same run
