"""A digit classifier as a feature extractor: the demo's stand-in for Inception.

Its name among extractors is ``digits``. Its weights are trained in seconds by
:func:`train_classifier` and kept in a safetensors file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edm2lite.dataset.digits import open_digits
from edm2lite.tensorfile import load_tensors, save_tensors

NUM_FEATURES = 64
"""Number of activations before the last layer."""


def digits_features(weights: Path | None) -> nn.Module:
    """A module from uint8 [N, 3, 8, 8] to the 64 activations before the classifier's last layer.

    Args:
        weights: File that :func:`train_classifier` wrote.

    Raises:
        ValueError: If no file is given, or it is of another network.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "random.safetensors"
        ...     _ = save_tensors(path, classifier().state_dict(), {})
        ...     digits_features(path)(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 64])
    """
    if weights is None:
        raise ValueError(
            "extractor digits needs a weights file; make it by edm2lite classifier --out FILE"
        )
    net = classifier()
    tensors, _ = load_tensors(weights)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} must hold the weights of the digit classifier, and holds others; train it"
            " by edm2lite classifier"
        ) from error
    return nn.Sequential(_Scaled(), *net[:-1])


class _Scaled(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (8, 8):
            raise ValueError(f"the digits extractor takes images of 8x8, got {list(images.shape)}")
        return _scaled(images)


def classifier() -> nn.Sequential:
    """The classifier with random weights: [N, 1, 8, 8] in [0, 1] -> [N, 10] logits."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * 16, NUM_FEATURES),
        nn.SiLU(),
        nn.Linear(NUM_FEATURES, 10),
    )


def train_classifier(
    path: Path,
    num_epochs: int = 12,
    seed: int = 0,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> float:
    """Train on two thirds of the digits and write the weights.

    Args:
        path: File for the weights.
        num_epochs: Number of passes over the training digits.
        seed: Random seed of the weights, the split and the order.
        progress: Function that is given the epochs and yields them, to show how far it is.

    Returns:
        The share of held-out digits that are classified correctly.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     train_classifier(Path(folder) / "classifier.safetensors", num_epochs=1) > 0.3
        True
    """
    dataset = open_digits()
    assert dataset.labels is not None
    images = torch.from_numpy(dataset.images(range(len(dataset))))
    labels = torch.from_numpy(dataset.labels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = classifier()
        order = torch.randperm(len(images))
        held_out, train = order[: len(order) // 3], order[len(order) // 3 :]
        optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
        for _ in progress(range(num_epochs)):
            for rows in torch.split(train[torch.randperm(len(train))], 64):
                loss = F.cross_entropy(net(_scaled(images[rows])), labels[rows])
                optimizer.zero_grad()
                torch.autograd.backward(loss)
                optimizer.step()
    with torch.no_grad():
        correct = net(_scaled(images[held_out])).argmax(1) == labels[held_out]
    accuracy = float(correct.float().mean())
    metadata = {"format": "edm2lite.digits/1", "accuracy": repr(accuracy)}
    save_tensors(path, net.state_dict(), metadata)
    return accuracy


def _scaled(images: Tensor) -> Tensor:
    return images[:, :1].float() / 255
