"""Batches for training: which images, with which noise, as functions of the images seen so far."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.joined import joined
from edm2lite.dataset.order import Alternating, Balanced, Bucketed, Order, Stream
from edm2lite.models.encoders import Encoder, PixelEncoder
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import ClassLabel
from edm2lite.seeding import Purpose, rng

from .data_config import DataConfig as DataConfig

CHUNK = 16
"""Number of samples that one thread prepares at a time."""


@dataclass(frozen=True)
class Batch:
    """What one process trains on in one forward pass.

    Attributes:
        images: [N, ...] as stored: pixels [C, H, W] uint8, or latents [2C, H, W] float32.
        conditioning: What the network is told about each image.
        z: [N] standard normal, from which the noise level is made.
        noise: [N, C, H, W] standard normal, of the shape of what the network sees.
        latent_noise: [N, C, H, W] standard normal, with which latents are drawn; None for pixels.
        indices: [N] position of each sample in the run, counted from 0.
    """

    images: Tensor
    conditioning: Conditioning
    z: Tensor
    noise: Tensor
    latent_noise: Tensor | None
    indices: NDArray[np.int64]


class LossInputs(NamedTuple):
    """What the loss is given in one forward pass, on the device of the network.

    Attributes:
        images: [N, C, H, W] float32, clean.
        conditioning: What the network is told about each image.
        sigma: [N] noise levels.
        noise: [N, C, H, W] standard normal.
    """

    images: Tensor
    conditioning: Conditioning
    sigma: Tensor
    noise: Tensor


def make_order(dataset: ImageDataset, data: DataConfig, seed: int, batch_size: int) -> Order:
    """The order in which a run sees a data set.

    Args:
        dataset: Training data.
        data: Options that decide the order.
        seed: Seed of the run.
        batch_size: Number of images per step, over all processes.

    Raises:
        ValueError: If the options exclude each other, or the data set does not allow them.
    """
    if data.flip and dataset.encoder is not None:
        raise ValueError(
            "data.flip must be false for latents: the latents of a mirrored image are others; store"
            " mirrored images too by edm2lite dataset convert --mirror, and encode them"
        )
    if data.label_dropout and not dataset.conditions:
        raise ValueError(f"data.label_dropout must be 0, {dataset.name} has no labels")
    known = [condition.name for condition in dataset.conditions]
    if unknown := [name for name in data.condition_dropout if name not in known]:
        raise ValueError(
            f"data.condition_dropout must name conditions of {dataset.name}"
            f" ({', '.join(known) or 'none'}), got {unknown[0]}"
        )
    if data.buckets:
        if data.class_balanced:
            raise ValueError("data.buckets and data.class_balanced exclude each other; choose one")
        return Bucketed(dataset.all_sizes(), seed, batch_size)
    if dataset.sizes is not None:
        raise ValueError(
            f"images of {dataset.name} have {len(np.unique(dataset.sizes, axis=0))} sizes; set"
            " data.buckets=true, or bring them to one size by edm2lite dataset convert"
        )
    if data.class_balanced:
        return Balanced(dataset.labels, seed)
    return Stream(np.arange(len(dataset)), seed)


class BatchSource:
    """The part of every global batch that one process trains on.

    The sample at position g of the run is the image that :func:`make_order` puts there, with
    everything random drawn from (seed, g): neither ranks nor micro-batches nor restarts change it.
    The next batches are prepared by threads while the current one trains: decoding, random numbers
    and copies all run outside Python's lock.

    Args:
        dataset: Training data.
        seed: Seed of the run.
        batch_size: Number of images per step over all processes, a multiple of ``world_size``.
        microbatch: Largest number of samples in one forward pass.
        rank: Index of this process.
        world_size: Number of processes.
        data: Options. [default: plain]
        names: Conditions that the network takes; others are not read. [default: all]
        encoder: Encoder of the run, which decides the shape of the noise. [default: one that leaves
            the shape of images as it is]
        prior: Images that take turns with those of ``dataset``, at the odd positions of the run.
        is_pinned: Whether batches lie in memory that a GPU can fetch from by itself.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> batches = BatchSource(open_dataset("digits"), seed=0, batch_size=64, microbatch=48)
        >>> [list(part.images.shape) for part in batches.batch(0)]
        [[48, 1, 8, 8], [16, 1, 8, 8]]
        >>> batches.close()
    """

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        seed: int,
        batch_size: int,
        microbatch: int,
        rank: int = 0,
        world_size: int = 1,
        data: DataConfig | None = None,
        names: Collection[str] | None = None,
        encoder: Encoder | None = None,
        prior: ImageDataset | None = None,
        is_pinned: bool = False,
    ):
        self.data = data or DataConfig(source=dataset.name)
        self.dataset, self.seed, self.batch_size = dataset, seed, batch_size
        self.microbatch, self._names, self._is_pinned = microbatch, names, is_pinned
        self._encoder = encoder or PixelEncoder()
        self.local_batch_size = batch_size // world_size
        self.first = rank * self.local_batch_size
        self.order = make_order(dataset, self.data, seed, batch_size)
        if prior is not None:
            others = Stream(np.arange(len(prior)), seed, purpose=Purpose.PRIOR)
            self.order = Alternating(self.order, others, offset=len(dataset))
            self.dataset = joined(dataset, prior, names)
        self._steps = ThreadPoolExecutor(1, thread_name_prefix="batches")
        self._workers = ThreadPoolExecutor(self.data.workers, thread_name_prefix="samples")
        self._ahead: dict[int, Future[list[Batch]]] = {}

    def batch(self, nimg: int) -> list[Batch]:
        """The micro-batches of the step that starts at ``nimg`` images.

        Raises:
            ValueError: If an image is damaged, or the index of a class is out of range.
        """
        positions = [nimg + i * self.batch_size for i in range(self.data.prefetch + 1)]
        for position in [p for p in self._ahead if p not in positions]:
            self._ahead.pop(position).cancel()
        for position in positions:
            if position not in self._ahead:
                self._ahead[position] = self._steps.submit(self._make, position)
        return self._ahead.pop(nimg).result()

    def close(self) -> None:
        """Stop preparing batches."""
        self._steps.shutdown(cancel_futures=True)
        self._workers.shutdown(cancel_futures=True)

    def row(self, position: int) -> int:
        """Index in the data set of the sample at ``position`` of the run."""
        return int(self.order.rows(np.array([position]))[0])

    def _make(self, nimg: int) -> list[Batch]:
        begin, size = nimg + self.first, self.local_batch_size
        positions = np.arange(begin, begin + size)
        rows = self.order.rows(positions)
        cuts = range(self.microbatch, size, self.microbatch)
        pairs = zip(np.split(positions, cuts), np.split(rows, cuts), strict=True)
        return [self._micro(indices, rows) for indices, rows in pairs]

    def _micro(self, indices: NDArray[np.int64], rows: NDArray[np.int64]) -> Batch:
        channels, height, width = self.dataset.image_shape
        stored = self.dataset.stored_shape[0]
        if self.dataset.sizes is not None:
            height, width = map(int, self.dataset.sizes[rows[0]])
        seen = self._encoder.shape((channels, height, width))
        latents = self.dataset.encoder is not None
        count = len(indices)
        chunks = [range(a, min(a + CHUNK, count)) for a in range(0, count, CHUNK)]
        batch = Batch(
            images=self._empty(
                count, stored, height, width, dtype=torch.float32 if latents else torch.uint8
            ),
            conditioning=self._conditioning(indices, rows, chunks),
            z=self._empty(count),
            noise=self._empty(count, *seen),
            latent_noise=self._empty(count, channels, height, width) if latents else None,
            indices=indices,
        )
        for _ in self._workers.map(lambda chunk: self._fill(batch, rows, chunk), chunks):
            pass
        return batch

    def _empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=self._is_pinned)

    def _conditioning(
        self, indices: NDArray[np.int64], rows: NDArray[np.int64], chunks: Sequence[range]
    ) -> Conditioning:
        def read(chunk: range) -> Conditioning:
            part = slice(chunk.start, chunk.stop)
            return self.dataset.conditioning(rows[part], self._names, self._draws(indices[part]))

        told = Conditioning.cat(list(self._workers.map(read, chunks)))
        for condition in self.dataset.conditions:  # a GPU would take a wrong class for none
            if isinstance(condition, ClassLabel) and condition.name in told.values:
                condition.check(told.values[condition.name], told.values[condition.name])
        if not self._is_pinned:
            return told
        return Conditioning({name: value.pin_memory() for name, value in told.values.items()})

    def _draws(self, indices: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """What chooses one of several captions for each sample; None if nothing depends on it."""
        if not any(known.is_random for known in self.dataset.extra_conditions):
            return None
        return np.array([rng(self.seed, int(i), Purpose.CAPTION).random() for i in indices])

    def _fill(self, batch: Batch, rows: NDArray[np.int64], chunk: range) -> None:
        images, z, noise = batch.images.numpy(), batch.z.numpy(), batch.noise.numpy()
        for i in chunk:
            position = int(batch.indices[i])
            image = self.dataset.read(int(rows[i]))
            if self.data.flip or self.data.label_dropout or self.data.condition_dropout:
                draws = rng(self.seed, position, Purpose.AUGMENTATION)
                drop, flip = draws.random(2)
                if self.data.flip and flip < 0.5:
                    image = image[..., ::-1]
                    batch.conditioning.flip_(i)
                dropped = self._dropped(draws)
                batch.conditioning.drop_(i, None if drop < self.data.label_dropout else dropped)
            images[i] = image
            generator = rng(self.seed, position, Purpose.TRAINING)
            generator.standard_normal(dtype=np.float32, out=z[i : i + 1])
            generator.standard_normal(dtype=np.float32, out=noise[i])
            if batch.latent_noise is not None:
                generator = rng(self.seed, position, Purpose.LATENT)
                generator.standard_normal(dtype=np.float32, out=batch.latent_noise.numpy()[i])

    def _dropped(self, draws: np.random.Generator) -> list[str]:
        """Names of the conditions that one sample is not told."""
        shares = sorted(self.data.condition_dropout.items())
        return [name for name, share in shares if draws.random() < share]
