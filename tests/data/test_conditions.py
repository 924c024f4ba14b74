"""What a network can be told about the images: labels, and whatever a user computes."""

import dataclasses

import numpy as np
import pytest
import torch

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.labels import Labels
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel, ConditionImage, Vector

LABELS = np.array([2, 0, 1, 2, 0, 1])
RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(6, 3))
IMAGES = RNG.normal(size=(6, 2, 4, 5)).astype(np.float32)


def plain(**fields):
    """Six images of 4 x 5 pixels that hold their index."""
    return ImageDataset("made", 6, (1, 4, 5), lambda i: np.full((1, 4, 5), i, np.uint8), **fields)


@pytest.fixture
def told():
    """The same with labels, a vector in an array, and a condition image by a function."""
    dataset = plain(table=Labels(LABELS.copy(), 3)).with_condition(Vector("v", 3), VECTORS.copy())
    images = IMAGES.copy()
    return dataset.with_condition(ConditionImage(2), images.__getitem__), images


def test_every_condition_is_declared_and_read_row_by_row(told):
    dataset, _ = told
    assert dataset.conditions == (ClassLabel(3), Vector("v", 3), ConditionImage(2))
    got = dataset.conditioning([4, 0, 4])
    assert got["label"].equal(torch.tensor([0, 2, 0])) and got["label"].dtype == torch.int64
    np.testing.assert_array_equal(got["v"], VECTORS[[4, 0, 4]].astype(np.float32))
    np.testing.assert_array_equal(got["image"], IMAGES[[4, 0, 4]])
    assert list(dataset.conditioning(np.array([1]), names=["v"])) == ["v"]
    assert not plain().conditions and not plain().conditioning([0])


def test_conditions_that_nobody_asks_for_are_not_read():
    dataset = plain(table=Labels(LABELS, 3)).with_condition(Vector("v", 1), lambda i: 1 / 0)
    assert dataset.conditioning([2], names=("label",))["label"].tolist() == [1]


@pytest.mark.parametrize("rows", [[3], [0, 1, 2, 3, 4, 5]])
def test_writing_into_a_conditioning_leaves_the_data_set_as_it_is(rows, told):
    dataset, images = told
    before = dataset.conditioning(range(6))
    batch = dataset.conditioning(rows)
    for row in range(len(rows)):
        batch.flip_(row)
        batch.drop_(row)
    batch["image"].add_(1)
    assert (batch["label"] == -1).all() and (batch["v"] == 0).all()
    after = dataset.conditioning(range(6))
    assert all(after[name].equal(before[name]) for name in before)
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(dataset.labels, LABELS)


def test_label_vectors_can_be_dropped_without_changing_the_data_set():
    vectors = np.ones((6, 2), np.float32)
    dataset = plain(table=Labels(vectors, 2))
    dataset.conditioning(range(6)).drop_(0)
    assert (vectors == 1).all()


def test_mirroring_concerns_images_alone():
    told = Conditioning(
        {
            "image": torch.from_numpy(IMAGES.copy()),
            "v": torch.from_numpy(VECTORS),
            "label": torch.from_numpy(LABELS),
            "tokens": torch.arange(36.0).reshape(6, 3, 2),
        }
    )
    before = Conditioning({name: told[name].clone() for name in told})
    told.flip_(2)
    np.testing.assert_array_equal(told["image"][2], IMAGES[2][:, :, ::-1])
    np.testing.assert_array_equal(told["image"][[0, 1, 3, 4, 5]], IMAGES[[0, 1, 3, 4, 5]])
    assert all(told[name].equal(before[name]) for name in ("v", "label", "tokens"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.with_condition(Vector("v", 3), VECTORS), "different names, got label, v, v"),
        (lambda d: d.with_condition(Vector("label", 3), VECTORS), "got label, v, label"),
        (lambda d: d.with_condition(Vector("w", 3), VECTORS[:5]), "each of the 6 images .* got 5"),
    ],
)
def test_conditions_that_clash_or_are_too_few_are_refused(change, message):
    dataset = plain(table=Labels(LABELS, 3)).with_condition(Vector("v", 3), VECTORS)
    with pytest.raises(ValueError, match=message):
        change(dataset)


@pytest.mark.parametrize(
    "values, message",
    [
        (lambda i: np.zeros(3 + (i == 2)), r"got \[3\] for image 1 and \[4\] for image 2"),
        (lambda i: np.zeros(3, np.uint8), "v must be floating-point .* got uint8"),
        (lambda i: ["a", "b", "c"], "v must be "),
    ],
)
def test_values_that_are_no_condition_are_explained(values, message):
    dataset = plain().with_condition(Vector("v", 3), values)
    with pytest.raises(ValueError, match=message):
        dataset.conditioning([1, 2])


def test_integers_masks_and_half_precision_get_the_types_that_networks_take():
    @dataclasses.dataclass(frozen=True)
    class Index(Vector):
        def example(self, num, height, width):
            return torch.zeros(num, dtype=torch.int64)

    values = {
        "u": np.arange(6, dtype=np.uint8), "m": np.arange(6) > 2, "h": VECTORS.astype(np.float16)
    }  # fmt: skip
    dataset = plain()
    for name, value in values.items():
        kind = Vector(name, 3) if name == "h" else Index(name, 1)
        dataset = dataset.with_condition(kind, value)
    told = dataset.conditioning([1, 5])
    assert [told[name].dtype for name in values] == [torch.int64, torch.bool, torch.float32]
    told.drop_(1)
    assert told["u"].tolist() == [1, -1] and told["m"].tolist() == [False, False]
