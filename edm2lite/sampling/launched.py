"""Batches that a GPU still computes: the next one is launched before the last one is fetched.

Launching asks a GPU for work and returns; only copies that are not pinned, and questions about
values, wait for it. Nothing here waits but :meth:`Launched.batch`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from edm2lite.network.conditioning import Conditioning

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class GeneratedBatch:
    """Some of the images.

    Attributes:
        seeds: Seed of each image.
        conditioning: What the network was told about each of them.
        images: [N, C, H, W] uint8 on the CPU.
    """

    seeds: list[int]
    conditioning: Conditioning
    images: Tensor


class Launched:
    """A batch that may still be computed, on its way to the host.

    Args:
        seeds: Seed of each image.
        conditioning: What the network was told about each of them, on the CPU.
        x: [N or more, C, H, W] what the solver returned.
        images: [N or more, C, H, W] images of it; those after the first N are dropped.
        are_finite: Whether decoding has met finite values alone, a bool of no dimensions.
    """

    def __init__(
        self,
        seeds: list[int],
        conditioning: Conditioning,
        x: Tensor,
        images: Tensor,
        are_finite: Tensor,
    ):
        self._seeds, self._conditioning = seeds, conditioning
        finite = torch.stack([x.isfinite().all(), are_finite])
        self._finite = finite.to("cpu", non_blocking=True)  # pinned, if it comes from a GPU
        self._images = images.to("cpu", non_blocking=True)
        self._event = None
        if x.device.type == "cuda":
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(x.device))

    def batch(self) -> GeneratedBatch:
        """The images, when they are there.

        Raises:
            ValueError: If a value is not finite.
        """
        images = self._images
        if self._event is not None:
            self._event.synchronize()
            images = images.clone()  # pinned memory is scarce, and these may be kept
        x_is_finite, images_are_finite = self._finite.tolist()
        if not (x_is_finite and images_are_finite):
            what = "came out" if not x_is_finite else "were decoded"
            remedy = "weaker guidance, or a dtype" if not x_is_finite else "a decoder_dtype"
            raise ValueError(
                f"images of seeds {self._seeds[0]} to {self._seeds[-1]} {what} as NaN or infinite;"
                f" use {remedy} of wider range (float32, or bfloat16 for float16)"
            )
        return GeneratedBatch(self._seeds, self._conditioning, images[: len(self._seeds)])


def one_ahead(
    launch: Callable[[S], T], fetch: Callable[[T], GeneratedBatch], parts: Iterable[S]
) -> Iterator[GeneratedBatch]:
    """The batches of ``parts``; each is fetched when the next one has been launched.

    Args:
        launch: Function that begins the batch of a part.
        fetch: Function that waits for what ``launch`` has returned.
        parts: Arguments of ``launch``.

    Example:
        >>> fetched = one_ahead(lambda n: print("launch", n) or n, lambda n: n, [1, 2])
        >>> for n in fetched:
        ...     print("fetched", n)
        launch 1
        launch 2
        fetched 1
        fetched 2
    """
    before: list[T] = []
    for part in parts:
        before.append(launch(part))
        if len(before) > 1:
            yield fetch(before.pop(0))
    for launched in before:
        yield fetch(launched)


def on_its_way(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on a device, which is there before whatever is launched next.

    A copy from memory that is not pinned would wait for everything that was launched before.

    Args:
        tensor: Values on the CPU.
        device: Device for them.

    Example:
        >>> on_its_way(torch.ones(2), torch.device("cpu"))
        tensor([1., 1.])
    """
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextlib.contextmanager
def tuned_convolutions(device: torch.device) -> Iterator[None]:
    """Within the block cuDNN tries its algorithms on each new shape, if a GPU computes.

    Whoever has asked for deterministic algorithms keeps those.

    Args:
        device: Device on which the block computes.

    Example:
        >>> with tuned_convolutions(torch.device("cpu")):
        ...     torch.backends.cudnn.benchmark
        False
    """
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark
    cudnn.benchmark = before or (device.type == "cuda" and not cudnn.deterministic)
    try:
        yield
    finally:
        cudnn.benchmark = before
