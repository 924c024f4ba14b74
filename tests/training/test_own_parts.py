"""Networks and conditions of a user's in the stock trainer."""

import dataclasses

import numpy as np
import pytest
import torch
from tiny_run import tiny_config
from training_runs import arguments, digests, losses, run_jobs, stats, user_module

from edm2lite.dataset import ImageDataset, open_dataset
from edm2lite.ema import list_snapshots
from edm2lite.models.loading import load
from edm2lite.network.conditions import ClassLabel, ConditionImage
from edm2lite.tensorfile import load_tensors
from edm2lite.training import Trainer
from edm2lite.training.data import BatchSource, DataConfig
from edm2lite.training.samples import told_in_grid

CPU = torch.device("cpu")

TOY_DIT = """
    from dataclasses import dataclass
    import torch
    from torch import nn
    from edm2lite.network.backbone import Backbone, BackboneConfig
    from edm2lite.network.conditions import ClassLabel
    @dataclass(frozen=True, kw_only=True)
    class Config(BackboneConfig):
        width: int = 32
        size_multiple, conditions = 2, (ClassLabel(10),)
        def build(self):
            return DiT(self)
    class DiT(Backbone):
        def __init__(self, config):
            super().__init__()
            self.config, width = config, config.width
            self.patch = nn.Conv2d(config.img_channels, width, 2, stride=2)
            self.place = nn.Parameter(torch.randn(config.img_resolution**2 // 4, width))
            self.told = nn.Linear(12, width)
            self.layer = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, batch_first=True)
            self.out = nn.Conv2d(width, 4 * config.img_channels, 1)
        def forward(self, x, c_noise, conditioning):
            label = self.config.conditions[0].vectors(conditioning["label"])
            told = self.told(torch.cat([label, c_noise.cos()[:, None], c_noise.sin()[:, None]], 1))
            h = self.patch(x)
            tokens = self.layer(h.flatten(2).transpose(1, 2) + self.place + told[:, None])
            return nn.functional.pixel_shuffle(self.out(tokens.transpose(1, 2).reshape(h.shape)), 2)
"""


def dit(name, *changes):
    backbone = f"{{kind: '{name}:Config', img_resolution: 8, img_channels: 1}}"
    return (f"net.backbone={backbone}", "optim.ref_lr=0.002", *changes)


def tiny(*changes):
    """The tiny configuration, with another network in place of the U-Net."""
    return tiny_config(*changes)


def test_a_network_of_25_lines_trains_is_saved_and_continues_bit_for_bit(tmp_path, monkeypatch):
    assert len(TOY_DIT.strip().splitlines()) <= 27
    user_module(tmp_path, monkeypatch, "toy_dit_a", TOY_DIT)
    changes = dit(
        "toy_dit_a",
        "sample_nimg=640",
        "sample_count=4",
        "sample_steps=2",
        "magnitudes_nimg=320",
        "validation={data: digits, every: 640, images: 32}",
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(tiny(*changes), whole, CPU).train()
    Trainer(tiny(*changes, "total_nimg=640"), cut, CPU).train()
    Trainer(tiny(*changes), cut, CPU).train()
    assert digests(cut) == digests(whole) and losses(cut) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0]
    assert len(list_snapshots(whole)) == 16
    model = load(whole)
    assert model.net.config.backbone.width == 32
    assert "backbone.layer.linear1.weight" in dict(model.net.named_parameters())


@pytest.mark.slow
def test_a_network_without_blocks_trains_in_several_processes_and_in_shards(tmp_path, monkeypatch):
    user_module(tmp_path, monkeypatch, "toy_dit_b", TOY_DIT)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    change = dit("toy_dit_b", "total_nimg=320")
    Trainer(tiny(*change), tmp_path / "one", CPU).train()
    jobs = {"two": [], "sharded": ["parallel=fsdp", "microbatch=8"]}
    codes, text = run_jobs(
        *(
            {"args": arguments(tmp_path / name, *change, *more), "ranks": 2}
            for name, more in jobs.items()
        )
    )
    assert codes == [[0, 0], [0, 0]], text
    expected, _ = load_tensors(tmp_path / "one" / "last.safetensors")
    for name in jobs:
        # ten steps of Adam on sums taken in other orders
        np.testing.assert_allclose(losses(tmp_path / name), losses(tmp_path / "one"), rtol=1e-4)
        found, _ = load_tensors(tmp_path / name / "last.safetensors")
        assert found.keys() == expected.keys()
        for weights in (found, expected):  # the bias of the keys has no gradient but rounding
            weights["backbone.layer.self_attn.in_proj_bias"][32:64] = 0
        for key, value in expected.items():
            assert (found[key] - value).norm() <= 1e-3 * value.norm() + 1e-6, (name, key)


HALVES = """
    import numpy as np
    from edm2lite.dataset import open_dataset
    from edm2lite.network.conditions import ConditionImage


    def halves():
        '''Digits, with the left half of each as its condition.'''
        digits = open_dataset("digits")

        def left_half(index):
            image = (digits.read(index).astype(np.float32) - 77.83) / 95.9
            image[:, :, 4:] = 0
            return image

        return digits.with_condition(ConditionImage(1), left_half)
"""


def test_a_network_that_takes_an_image_trains_on_data_that_has_one(tmp_path, monkeypatch):
    user_module(tmp_path, monkeypatch, "halves_a", HALVES)
    changes = ("data.source=halves_a:halves", "net.backbone.cond_channels=1", "data.flip=true",
               "data.label_dropout=0.1", "sample_nimg=640", "sample_count=4", "sample_steps=2",
               "magnitudes_nimg=320", "microbatch=12",
               "validation={data: 'halves_a:halves', every: 640, images: 32}")  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(tiny(*changes), whole, CPU).train()
    Trainer(tiny(*changes, "total_nimg=640"), cut, CPU).train()
    Trainer(tiny(*changes), cut, CPU).train()
    assert digests(cut) == digests(whole) and losses(cut) == losses(whole)
    assert len(list((whole / "samples").iterdir())) == 4
    # half of the image is known: the loss falls below that of the same run without it
    blind = [change for change in changes if "cond_channels" not in change]
    Trainer(tiny(*blind), tmp_path / "blind", CPU).train()
    seen, unseen = (stats(f)[-1]["validation"]["raw"] for f in (whole, tmp_path / "blind"))
    assert seen < 0.97 * unseen


def test_data_without_the_image_that_the_network_needs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got a condition image of 1 channels"):
        Trainer(tiny("net.backbone.cond_channels=1"), tmp_path / "a", CPU)
    assert not (tmp_path / "a").exists()


def numbered(count=24):
    """Images that hold their index, whose left edge is 100 more, with themselves as condition."""

    def read(index):
        image = np.full((1, 4, 6), index, np.uint8)
        image[:, :, 0] += 100
        return image

    dataset = ImageDataset("numbered", count, (1, 4, 6), read)
    return dataset.with_condition(ConditionImage(1), lambda i: read(i).astype(np.float32))


@pytest.mark.parametrize("microbatch", [24, 7])
def test_a_condition_image_is_mirrored_with_its_image_and_dropped_alone(microbatch):
    data = DataConfig(source="numbered", flip=True, label_dropout=0.3)
    source = BatchSource(numbered(), seed=1, batch_size=24, microbatch=microbatch, data=data)
    batches = [part for k in range(10) for part in source.batch(24 * k)]
    source.close()
    mirrored = dropped = 0
    for batch in batches:
        for image, condition in zip(batch.images, batch.conditioning["image"], strict=True):
            mirrored += bool(image[0, 0, 5] > image[0, 0, 0])
            dropped += not condition.any()
            assert condition.equal(image.float()) or not condition.any()
    # of 240: half, and three tenths, within four standard deviations
    assert abs(mirrored - 120) < 31 and abs(dropped - 72) < 29


def test_conditions_that_the_network_does_not_take_are_not_read():
    def unreadable(index):
        raise AssertionError("nobody asked")

    dataset = open_dataset("digits").with_condition(ConditionImage(1), unreadable)
    source = BatchSource(dataset, seed=0, batch_size=8, microbatch=8, names=("label",))
    (batch,) = source.batch(0)
    source.close()
    assert list(batch.conditioning) == ["label"]


def test_grids_show_classes_in_turn_or_the_conditions_of_images_all_over_the_data_set():
    conditions = (ClassLabel(10), ConditionImage(1))
    dataset = open_dataset("digits").with_condition(
        ConditionImage(1), lambda i: np.full((1, 8, 8), float(i))
    )
    in_turn = told_in_grid(conditions[:1], dataset, 12)
    assert list(in_turn) == ["label"] and in_turn["label"].tolist() == [*range(10), 0, 1]
    told = told_in_grid(conditions, dataset, 3)
    assert told["label"].tolist() == dataset.labels[[0, 599, 1198]].tolist()
    assert told["image"][:, 0, 0, 0].tolist() == [0.0, 599.0, 1198.0]  # thirds of 1797
    few = dataclasses.replace(dataset, num_images=2)
    assert told_in_grid(conditions, few, 5)["image"][:, 0, 0, 0].tolist() == [0, 1, 0, 1, 0]
    assert not told_in_grid((), dataset, 3)
