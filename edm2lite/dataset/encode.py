"""Images to the latents of an autoencoder, in shards that several processes can divide.

Which image goes into which shard, and with which others it passes through the autoencoder, depends
on the data set and the settings alone. So an encoding that was interrupted, or made by several
processes, has the same bytes as any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.claim import claim_folder
from edm2lite.dataset.base import ImageDataset
from edm2lite.dataset.encode_plan import SHARD_IMAGES, EncodePlan, Shard
from edm2lite.dataset.shards import FORMAT, Index, save_captions
from edm2lite.models.autoencoder import Autoencoder
from edm2lite.models.encoders import EDM2_LATENTS, LatentEncoder
from edm2lite.tensorfile import TensorSpec, TensorWriter, read_header, verify
from edm2lite.threads import map_in_threads


def encode_images(
    dataset: ImageDataset,
    dest: str | Path,
    autoencoder: Autoencoder,
    *,
    convention: Literal["measured", "edm2"] = "measured",
    batch_size: int = 8,
    shard_images: int = SHARD_IMAGES,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Encode a data set to latents in a folder; the same call continues what was interrupted.

    Several processes share the work if each of them calls this. Process 0 waits for the others and
    completes the data set.

    Args:
        dataset: Data set of pixels.
        dest: Folder of the new data set.
        autoencoder: Autoencoder, on the device that computes.
        convention: Normalization of latents, see :class:`edm2lite.dataset.encode_plan.EncodePlan`.
        batch_size: Number of images that are encoded together.
        shard_images: Largest number of images in one file.
        rank: Index of this process.
        world_size: Number of processes.
        num_threads: Number of reader threads.
        progress: Function that is called with the number of images that this process has encoded,
            and of all that it will.

    Raises:
        ValueError: If the images do not fit the autoencoder, ``dest`` holds something else or is
            written by another process, an image is damaged, or its latents are not finite. Shards
            that are complete stay.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace as Record
        >>> from edm2lite.dataset import open_dataset
        >>> class Halving(torch.nn.Linear):  # stands for a diffusers AutoencoderKL
        ...     config = Record(in_channels=1, latent_channels=1, block_out_channels=(1, 1))
        ...
        ...     def encode(self, x):
        ...         mean = torch.nn.functional.avg_pool2d(x, 2)
        ...         return Record(latent_dist=Record(mean=mean, std=0 * mean + 0.1))
        >>> autoencoder = Autoencoder("halving", Halving(1, 1), digest="none")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     encode_images(open_dataset("digits"), folder + "/latents", autoencoder)
        ...     print(open_dataset(folder + "/latents").image_shape)
        (1, 4, 4)
    """
    with claim_folder(Path(dest)) if rank == 0 else contextlib.nullcontext() as mine:
        plan = EncodePlan(
            dataset, Path(dest), autoencoder,
            convention=convention, batch_size=batch_size, shard_images=shard_images,
        )  # fmt: skip
        write_shards(
            plan, rank=rank, world_size=world_size, num_threads=num_threads, progress=progress
        )
        if mine is not None:
            mine.check()
            finish(plan)


def write_shards(
    plan: EncodePlan,
    *,
    rank: int = 0,
    world_size: int = 1,
    num_threads: int = 2,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write this process's part of the shards that are missing.

    Args:
        plan: Plan of the encoding.
        rank: Index of this process, which writes shards ``rank``, ``rank + world_size``, ... of
            those that are missing.
        world_size: Number of processes.
        num_threads: Number of reader threads.
        progress: Function that is called with the number of images that this process has encoded,
            and of all that it will.

    Raises:
        ValueError: If an image is damaged, or its latents are not finite. The shards written so far
            stay, and the same call continues.
    """
    shards = shards_of_process(plan, rank, world_size)
    done, total = 0, sum(len(shard.positions) for shard in shards)

    def count(num: int) -> None:
        nonlocal done
        done += num
        progress(done, total)

    for shard in shards:
        _write_shard(plan, shard, num_threads, count)


def shards_of_process(plan: EncodePlan, rank: int, world_size: int) -> list[Shard]:
    """The missing shards that one of several processes writes."""
    own = {shard.path for shard in plan.shards[rank::world_size]}
    return [shard for shard in plan.missing if shard.path in own]


def finish(plan: EncodePlan, poll_sec: float = 0.5) -> None:
    """Wait for the shards of all processes, then write the index; one process calls this.

    Args:
        plan: Plan of the encoding.
        poll_sec: Seconds between two looks for the shards of other processes.
    """
    while not all(_is_there(plan, shard.path) for shard in plan.shards):
        time.sleep(poll_sec)
    rows = np.concatenate([shard.positions for shard in plan.shards])
    table, captions = plan.dataset.table and plan.dataset.table.rows(rows), plan.dataset.captions
    Index(
        encoder=_encoder(plan),
        shards=[_entry(shard) for shard in plan.shards],
        label_dim=table.label_dim if table else None,
        classes=table.classes if table else (),
        settings={"source": plan.dataset.name, **plan.settings},
        captions=None if captions is None else save_captions(plan.dest, captions.rows(rows)),
    ).write(plan.dest, table.values if table else None)


def _is_there(plan: EncodePlan, path: Path) -> bool:
    """Whether a shard has been written, anew if it was damaged when the work began."""
    if path in plan.damaged:
        try:
            verify(path)
        except ValueError:
            return False
        plan.damaged.remove(path)
    return path.is_file()


def _write_shard(
    plan: EncodePlan, shard: Shard, num_threads: int, progress: Callable[[int], None]
) -> None:
    channels, count = plan.autoencoder.channels, len(shard.positions)
    specs = {
        "latents": TensorSpec("F32", (count, 2 * channels, *shard.size)),
        "positions": TensorSpec("I64", (count,)),
        "moments": TensorSpec("F64", (2, channels)),
    }
    metadata = {"format": FORMAT, "settings": json.dumps(plan.settings)}
    sums = torch.zeros(2, channels, dtype=torch.float64)
    batches = np.split(shard.positions, range(plan.batch_size, count, plan.batch_size))
    device = next(plan.autoencoder.model.parameters()).device

    def read(positions: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(plan.dataset.images([int(i) for i in positions]))

    with TensorWriter(shard.path, specs, metadata) as writer:
        loaded = map_in_threads(read, batches, num_threads)
        for positions, images in zip(batches, loaded, strict=True):
            latents = plan.autoencoder.encode(images.to(device), plan.input_range).cpu()
            _check_finite(plan, latents, positions)
            mean, std = latents.double().chunk(2, dim=1)
            sums[0] += mean.sum(dim=(0, 2, 3))
            sums[1] += (mean.square() + std.square()).sum(dim=(0, 2, 3))
            writer.write(latents)
            progress(len(positions))
        writer.write(torch.from_numpy(shard.positions))
        writer.write(sums / shard.num_pixels)


def _check_finite(plan: EncodePlan, latents: Tensor, positions: NDArray[np.int64]) -> None:
    finite = latents.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        name = plan.dataset.names[int(positions[int(finite.long().argmin())])]
        raise ValueError(
            f"latents of {name} in {plan.dataset.name} must be finite, {plan.autoencoder.name} made"
            " NaN or infinity of it; remove that image, or use another autoencoder"
        )


def _encoder(plan: EncodePlan) -> LatentEncoder:
    """The measured statistics of draws: their variance is var(means) + mean of std**2."""
    name = plan.autoencoder.name
    vae = str(Path(name).resolve()) if Path(name).is_dir() else name
    if plan.convention == "edm2":
        return dataclasses.replace(EDM2_LATENTS, vae=vae, vae_digest=plan.autoencoder.digest)
    weights = [shard.num_pixels for shard in plan.shards]
    mean, square = np.average([_moments(s.path) for s in plan.shards], axis=0, weights=weights)
    return LatentEncoder(
        vae=vae,
        vae_digest=plan.autoencoder.digest,
        mean=tuple(mean.tolist()),
        std=tuple(np.sqrt(square - mean**2).tolist()),
        input_range=plan.input_range,
    )


def _moments(path: Path) -> NDArray[np.float64]:
    spec = read_header(path).tensors["moments"]
    with open(path, "rb") as file:
        file.seek(spec.offset)
        return np.frombuffer(file.read(spec.nbytes), np.float64).reshape(spec.shape)


def _entry(shard: Shard) -> dict[str, Any]:
    digest = read_header(shard.path).digest
    return {"count": len(shard.positions), "size": list(shard.size), "digest": digest}
