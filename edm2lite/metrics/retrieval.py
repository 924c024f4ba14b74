"""A feature extractor that is trained on a data set to know each of its images again.

Its name among extractors is ``retrieval``. A small convolutional network tells the images of the
data set apart, each a class of its own, however they are turned, stretched, shifted, blurred,
recolored and made noisy. Its features serve data sets of a few thousand images that are unlike
those which Inception and CLIP were trained on, and need no download.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.captions import Captions
from edm2lite.metrics.caption_recall import recalled
from edm2lite.metrics.image_source import GivenImages
from edm2lite.tensorfile import load_tensors, save_tensors

FORMAT = "edm2lite.retrieval/1"
SIDE = 32
"""Side of the images that the network sees; others are averaged to it."""

NUM_FEATURES = 128
HELD_OUT = 20
"""One image in so many is left out of training, to test the network on."""

FEWEST = 2 * HELD_OUT
"""Number of images below which there is nothing to test it on."""

_BATCH = 128
_SCALE = 16.0  # of cosines, as logits
_COPIES = 4  # of each image in the test


class RetrievalNetwork(nn.Module):
    """[N, 3, H, W] uint8 -> [N, 128] features of RMS 1; their cosines say how alike images are.

    Example:
        >>> net = RetrievalNetwork().eval()
        >>> features = net(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        >>> features.shape, features.square().mean(dim=1).allclose(torch.ones(2))
        (torch.Size([2, 128]), True)
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128 * (SIDE // 8) ** 2, NUM_FEATURES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        return self.features(small(images))

    def features(self, x: Tensor) -> Tensor:
        """[N, 128] features of images [N, 3, 32, 32] from 0 to 1."""
        return math.sqrt(NUM_FEATURES) * F.normalize(self.layers(x), dim=1)


@dataclass(frozen=True)
class HeldOutRecall:
    """How well a network knows images that it was not trained on.

    Attributes:
        num: Number of images left out of training.
        among: Number of images among which each is looked for.
        first: Share of their augmented copies to which no image is nearer than the original.
        fifth: Share of them that have the original among the five nearest.
    """

    num: int
    among: int
    first: float
    fifth: float


def retrieval_features(weights: Path | None) -> nn.Module:
    """The network in a file.

    Args:
        weights: File that :func:`train_retrieval` wrote.

    Raises:
        ValueError: If no file is given, or it holds other weights.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "random.safetensors"
        ...     _ = save_tensors(path, RetrievalNetwork().state_dict(), {})
        ...     type(retrieval_features(path)).__name__
        'RetrievalNetwork'
    """
    if weights is None:
        raise ValueError(
            "extractor retrieval needs a weights file; make it by edm2lite classifier --data"
            " DATASET --out FILE"
        )
    net = RetrievalNetwork()
    try:
        net.load_state_dict(load_tensors(weights)[0])
    except RuntimeError as error:
        raise ValueError(
            f"{weights} must hold the weights of a retrieval network, and holds others; train one"
            " by edm2lite classifier --data DATASET"
        ) from error
    return net


def train_retrieval(
    dataset: ImageDataset,
    path: Path,
    num_samples: int = 40_000,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> HeldOutRecall:
    """Train on 95 % of the images and write the weights.

    On one machine the same call gives the same weights.

    Args:
        dataset: Images of one size, as pixels with 1 or 3 channels, at least 40.
        path: File for the weights.
        num_samples: Number of augmented images to train on.
        seed: Random seed of weights, split, order and augmentation.
        progress: Function that is given the epochs and yields them, to show how far it is.

    Raises:
        ValueError: If the images are of another kind, or too few.

    Example:
        >>> import tempfile
        >>> from edm2lite.dataset import open_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "net.safetensors"
        ...     train_retrieval(open_dataset("digits"), path, num_samples=128).among
        1797
    """
    num = len(dataset)
    if num < FEWEST:
        raise ValueError(f"{dataset.name} must have at least {FEWEST} images, it has {num}")
    given, batches = GivenImages(dataset, 256), range(0, num, 256)
    parts = [small(given.images(range(i, min(i + 256, num)))) for i in batches]
    images = torch.cat(parts).expand(-1, 3, -1, -1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net, order = RetrievalNetwork(), torch.randperm(num)
        held_out, train = order[: num // HELD_OUT], order[num // HELD_OUT :]
        _train(net, images[train], num_samples, progress)
        net.eval()
        found = _test(net, images, held_out)
    metadata = {
        "format": FORMAT, "source": dataset.name,
        "recall_1": repr(found.first), "recall_5": repr(found.fifth),
    }  # fmt: skip
    save_tensors(path, net.state_dict(), metadata)
    return found


def small(images: Tensor) -> Tensor:
    """uint8 images [N, C, H, W] as [N, C, 32, 32] from 0 to 1."""
    return F.adaptive_avg_pool2d(images.float() / 255, SIDE)


def augmented(x: Tensor) -> Tensor:
    """Images [N, 3, 32, 32], each turned, stretched, shifted, blurred, recolored, with noise.

    Draws are from torch's global generator.

    Example:
        >>> augmented(torch.full((2, 3, 32, 32), 0.5)).shape
        torch.Size([2, 3, 32, 32])
    """

    def uniform(*shape: int) -> Tensor:
        return 2 * torch.rand(len(x), *shape) - 1

    angle, stretch = math.radians(10) * uniform(), (0.15 * uniform(2)).exp()
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    warp = torch.cat([turn * stretch[:, None], 0.15 * uniform(2, 1)], dim=2)
    grid = F.affine_grid(warp, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(F.pad(moved, (1, 1, 1, 1), mode="replicate"), 3, 1)
    y = torch.lerp(moved, blurred, torch.rand(len(x), 1, 1, 1))
    y = (y - 0.5) * (0.2 * uniform(1, 1, 1)).exp() + 0.5 + 0.08 * uniform(3, 1, 1)
    return y + 0.06 * torch.rand(len(x), 1, 1, 1) * torch.randn(x.shape)


def _train(
    net: RetrievalNetwork,
    images: Tensor,
    num_samples: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> None:
    """Cross-entropy of which image an augmented one is, by cosines with a vector for each."""
    classes = nn.Parameter(0.05 * torch.randn(len(images), NUM_FEATURES))
    num_epochs = math.ceil(num_samples / len(images))
    per_epoch = math.ceil(len(images) / _BATCH)
    optimizer = torch.optim.AdamW([*net.parameters(), classes], weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, num_epochs * per_epoch)
    for _ in progress(range(num_epochs)):
        for rows in torch.randperm(len(images)).split(_BATCH):
            features = F.normalize(net.features(augmented(images[rows])), dim=1)
            logits = _SCALE * features @ F.normalize(classes, dim=1).T
            optimizer.zero_grad()
            torch.autograd.backward(F.cross_entropy(logits, rows))
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _test(net: RetrievalNetwork, images: Tensor, held_out: Tensor) -> HeldOutRecall:
    known = torch.cat([net.features(part) for part in images.split(256)]).numpy()
    rows = held_out.repeat(_COPIES)
    copies = torch.cat([net.features(augmented(images[part])) for part in rows.split(256)]).numpy()
    names = Captions([(str(i),) for i in range(len(images))])
    first, fifth = (
        float(np.mean(recalled(copies, [str(int(i)) for i in rows], known, names, rank)))
        for rank in (1, 5)
    )
    return HeldOutRecall(len(held_out), len(images), first, fifth)
