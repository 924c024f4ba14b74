"""The work of an encoding, checked before the first image passes through the autoencoder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray

from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.shards import CAPTIONS, INDEX, LABELS, Index, shard_name
from edm2lite.models.autoencoder import Autoencoder
from edm2lite.models.encoders import EDM2_LATENTS
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import Header, verify

logger = logging.getLogger(__name__)

SHARD_IMAGES = 4096
PROBES = 16  # images whose content tells one data set from another of the same names


@dataclass(frozen=True)
class Shard:
    """Images of one size that go into one file.

    Attributes:
        path: Path of the file.
        size: (h, w) of the latents.
        positions: Indices of the images in the data set, ascending.
    """

    path: Path
    size: tuple[int, int]
    positions: NDArray[np.int64]

    @property
    def num_pixels(self) -> int:
        """Number of latent pixels in all its images."""
        return len(self.positions) * self.size[0] * self.size[1]


class EncodePlan:
    """Which image goes into which shard, and which shards have not been written yet.

    Args:
        dataset: Data set of pixels.
        dest: Folder of the new data set.
        autoencoder: Autoencoder, on the device that computes.
        convention: Normalization of latents: ``"measured"`` standardizes by what is found, and
            feeds the autoencoder images of -1..1; ``"edm2"`` takes the constants of the EDM2
            paper, and images of 0..1 as its code does.
        batch_size: Number of images that pass through the autoencoder together.
        shard_images: Largest number of images in one file.

    Raises:
        ValueError: If the images do not fit the autoencoder, the data set has condition images,
            ``dest`` holds something else, or the disk is too full.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        dest: Path,
        autoencoder: Autoencoder,
        *,
        convention: Literal["measured", "edm2"] = "measured",
        batch_size: int = 8,
        shard_images: int = SHARD_IMAGES,
    ):
        self.dataset, self.dest, self.autoencoder = dataset, dest, autoencoder
        self.convention, self.batch_size = convention, batch_size
        self.input_range: Literal["-1..1", "0..1"] = "0..1" if convention == "edm2" else "-1..1"
        self._sizes = dataset.all_sizes()
        self._check_images()
        self.settings = {
            "images": fingerprint(dataset),
            "vae_digest": autoencoder.digest,
            "convention": convention,
            "batch_size": batch_size,
            "shard_images": shard_images,
        }
        self.shards = list(self._cut(shard_images))
        self.damaged: set[Path] = set()
        self.missing = self._unwritten()
        self._check_space()

    def _check_images(self) -> None:
        dataset, factor = self.dataset, self.autoencoder.factor
        if dataset.encoder is not None:
            raise ValueError(f"{dataset.name} must hold pixels, it holds latents already")
        if dataset.extra_conditions:
            described = ", ".join(c.condition.describe() for c in dataset.extra_conditions)
            raise ValueError(
                f"latent data sets hold labels and captions only, {dataset.name} also has"
                f" {described}; leave that out by edm2lite dataset convert --no-conditions, or"
                " train on pixels"
            )
        expected = int(self.autoencoder.model.config.in_channels)
        if dataset.image_shape[0] not in (1, expected):
            raise ValueError(
                f"images of {dataset.name} must have {expected} channels (or one) for"
                f" {self.autoencoder.name}, they have {dataset.image_shape[0]}"
            )
        odd = self._sizes[(self._sizes % factor).any(axis=1)]
        if len(odd):
            raise ValueError(
                f"sides of the images of {dataset.name} must be multiples of {factor} for"
                f" {self.autoencoder.name}, found {odd[0, 0]} x {odd[0, 1]}; convert the data set"
                " with another --resolution or --bucket-step"
            )
        if self.convention == "edm2" and self.autoencoder.channels != len(EDM2_LATENTS.mean):
            raise ValueError(
                f"--convention edm2 is for latents of 4 channels, {self.autoencoder.name} has"
                f" {self.autoencoder.channels}; leave it out"
            )

    def _cut(self, shard_images: int) -> Iterator[Shard]:
        sizes, group = np.unique(self._sizes, axis=0, return_inverse=True)
        number = 0
        for g, (height, width) in enumerate((sizes // self.autoencoder.factor).tolist()):
            positions = np.flatnonzero(group.reshape(-1) == g)
            for begin in range(0, len(positions), shard_images):
                path = self.dest / shard_name(number)
                yield Shard(path, (height, width), positions[begin : begin + shard_images])
                number += 1

    def _unwritten(self) -> list[Shard]:
        """The shards that have not been written yet; ValueError if the folder is in use."""
        written: list[Shard] = []
        if (self.dest / INDEX).is_file():
            self._check_same(Index.read(self.dest).settings)
            written = self.shards
        elif self.dest.exists():
            known = {shard.path.name for shard in self.shards} | {LABELS, CAPTIONS}
            for path in self.dest.iterdir():
                if path.name not in known and not path.name.startswith("."):
                    self._check_same({})
            written = [shard for shard in self.shards if self._is_whole(shard.path)]
        done = {shard.path for shard in written}
        return [shard for shard in self.shards if shard.path not in done]

    def _is_whole(self, path: Path) -> bool:
        """Whether a shard has been written and every byte is as it was written."""
        if not path.is_file():
            return False
        try:
            header = verify(path)
        except ValueError as error:
            logger.warning("%s; its images are encoded again", error)
            self.damaged.add(path)
            return False
        self._check_same(_settings_of(header))
        return True

    def _check_same(self, settings: Any) -> None:
        different = [key for key, value in self.settings.items() if settings.get(key) != value]
        if different:
            raise ValueError(
                f"{self.dest} must be free or hold the beginning of this encoding, it differs in"
                f" {', '.join(different)}; remove it, or give another folder"
            )

    def _check_space(self) -> None:
        num_pixels = sum(shard.num_pixels for shard in self.missing)
        needed = 4 * 2 * self.autoencoder.channels * num_pixels
        above = next(p for p in [self.dest, *self.dest.absolute().parents] if p.exists())
        free = shutil.disk_usage(above).free
        if needed > free:
            raise ValueError(
                f"{self.dest} needs {needed / 2**30:.1f} GiB, its disk has {free / 2**30:.1f} GiB"
                " left; free some, or give a folder on another disk"
            )


def _settings_of(header: Header) -> dict[str, Any]:
    """The settings with which a shard was written."""
    try:
        return parse_object(header.metadata.get("settings", "{}"))
    except ValueError as error:
        raise ValueError(
            f"{header.path} is not a shard of an encoding: {error}; remove it"
        ) from error


def fingerprint(dataset: ImageDataset) -> str:
    """Digest of names, sizes, labels, captions and some of the images, which tells data sets apart.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> fingerprint(open_dataset("digits"))
        '0ef03f43076fd155'
    """
    state = xxhash.xxh3_64("\n".join(dataset.names).encode())
    for array in (dataset.sizes, dataset.labels):
        if array is not None:
            state.update(np.ascontiguousarray(array).data)
    if dataset.captions is not None:
        state.update(dataset.captions.digest.encode())
    for index in np.unique(np.linspace(0, len(dataset) - 1, PROBES).astype(int)):
        state.update(np.ascontiguousarray(dataset.read(int(index))).data)
    return state.hexdigest()
