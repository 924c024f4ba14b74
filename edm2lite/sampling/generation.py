"""Generating images by name of the model: as a tensor, or into folders that several processes fill.

:func:`generate` is the whole of it for one model. The command ``edm2lite generate`` takes the two
steps below for several: :func:`image_generator` for each, then :func:`fill`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from edm2lite import processes
from edm2lite.claim import Claim
from edm2lite.dataset import ImageDataset
from edm2lite.models.adapters import Adapter
from edm2lite.models.loading import Model, load, with_adapters
from edm2lite.network.conditioning import Conditioning
from edm2lite.sampling.compatibility import Guide
from edm2lite.sampling.conditions import Classes, conditions_of_seeds
from edm2lite.sampling.controls import control_values
from edm2lite.sampling.edit import Edit, Pictures, as_dataset
from edm2lite.sampling.image_folder import WRITERS, ImageFolder
from edm2lite.sampling.image_set import Images
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.prompts import captions_of_seeds, prompts_of_seeds
from edm2lite.sampling.settings import Sampling

Progress = Callable[[int, int], None]
ConditioningSource = Conditioning | Mapping[str, Tensor] | Tensor | ImageDataset
"""Conditions with one row per seed (a tensor stands for labels), or a data set to take them from,
image after image."""


@overload
def generate(
    model: Model | str | Path,
    seeds: Sequence[int] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    negative_prompt: str = "",
    conditioning: ConditioningSource | None = None,
    classes: Classes | None = None,
    sampling: Sampling | None = None,
    guide: Guide | str | Path = None,
    edit: Edit | None = None,
    controls: Sequence[Pictures] = (),
    batch_size: int = 64,
    adapters: Sequence[Adapter | str | Path] = (),
    device: torch.device | str | None = None,
    compiled: bool = False,
    out: None = None,
    progress: Progress | None = None,
) -> Images: ...


@overload
def generate(
    model: Model | str | Path,
    seeds: Sequence[int] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    negative_prompt: str = "",
    conditioning: ConditioningSource | None = None,
    classes: Classes | None = None,
    sampling: Sampling | None = None,
    guide: Guide | str | Path = None,
    edit: Edit | None = None,
    controls: Sequence[Pictures] = (),
    batch_size: int = 64,
    adapters: Sequence[Adapter | str | Path] = (),
    device: torch.device | str | None = None,
    compiled: bool = False,
    out: str | Path,
    progress: Progress | None = None,
) -> Path: ...


def generate(
    model: Model | str | Path,
    seeds: Sequence[int] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    negative_prompt: str = "",
    conditioning: ConditioningSource | None = None,
    classes: Classes | None = None,
    sampling: Sampling | None = None,
    guide: Guide | str | Path = None,
    edit: Edit | None = None,
    controls: Sequence[Pictures] = (),
    batch_size: int = 64,
    adapters: Sequence[Adapter | str | Path] = (),
    device: torch.device | str | None = None,
    compiled: bool = False,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Images | Path:
    """Generate one image per seed: a function of seed, conditions, settings and weights alone.

    Args:
        model: The model, or its name as :func:`edm2lite.load` takes it.
        seeds: Seeds of the images, each at least 0. [default: one for each prompt, from 0 on]
        prompts: Texts that describe the images, for a model that is told text: seed s gets prompt
            s mod their number.
        negative_prompt: Text to guide away from, in place of the model without its conditions.
        conditioning: What the network is told besides prompts; captions of a data set are prompts
            themselves. [default: drawn from the seeds]
        classes: Class of every image by number or name, several in turn (``"all"``, ``"0-3"``,
            ``["Flags", "Food"]``: seed s gets number s mod M of M), or one for each seed; used in
            place of those in ``conditioning``.
        sampling: Sampler settings. [default: 32 steps of Heun's method]
        guide: Denoiser to guide away from: a model, its name, or ``"unconditional"`` for ``model``
            without its conditions, which is the default with prompts; with a weight in
            ``sampling.guidance``.
        edit: Images to begin with, and which part of them is made, in place of noise alone.
        controls: Images for each condition image that the network takes, uint8 [M, C, H, W] or a
            data set; seed s is told image s mod M. They are normalized as in training.
        batch_size: Number of images at a time on a GPU; ignored on a CPU, where it is chosen.
        adapters: Adapters of the model, or their files with a strength each: ``FILE:0.5``.
        device: Device that computes. [default: the GPU of this process, else the CPU]
        compiled: Whether torch.compile makes kernels for the networks first.
        out: Folder, or ZIP file, to write to; images that are there already are kept. Under
            torchrun, processes share the seeds, and the first one waits for the others.
        progress: Called with (images made, images to make) after each batch.

    Returns:
        Images, a uint8 tensor [N, C, H, W] on the CPU with a ``grid()`` and ``save()``; or ``out``,
        if it is given.

    Raises:
        FileNotFoundError: If there is no such model, or adapter.
        ValueError: If the arguments do not fit the model, or ``out`` holds other images or is being
            written by another process.

    Example:
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.models import PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=10, model_channels=8,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> model = Model("tiny", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
        >>> images = generate(model, range(3), classes="all", sampling=Sampling(num_steps=2))
        >>> images
        Images(3 of 1 x 8 x 8, seeds 0 to 2)
        >>> images.shape, images.labels
        (torch.Size([3, 1, 8, 8]), [0, 1, 2])
    """
    generator = image_generator(
        model, seeds, prompts=prompts, negative_prompt=negative_prompt, conditioning=conditioning,
        classes=classes, sampling=sampling, guide=guide, edit=edit, controls=controls,
        batch_size=batch_size, device=device, adapters=adapters, compiled=compiled,
    )  # fmt: skip
    if out is None:
        return _collected(generator, progress)
    fill([generator], [ImageFolder(Path(out))], progress)
    return Path(out)


def _collected(generator: ImageGenerator, progress: Progress | None) -> Images:
    """All images of a generator, in memory."""
    images: list[Tensor] = []
    for batch in generator:
        images.append(batch.images)
        if progress is not None:
            progress(sum(map(len, images)), len(generator.seeds))
    none = torch.empty(0, *generator.shape, dtype=torch.uint8)
    return Images.of(generator, torch.cat(images) if images else none)


def image_generator(
    model: Model | str | Path,
    seeds: Sequence[int] | None = None,
    *,
    prompts: Sequence[str] | None = None,
    negative_prompt: str = "",
    conditioning: ConditioningSource | None = None,
    classes: Classes | None = None,
    sampling: Sampling | None = None,
    guide: Guide | str | Path = None,
    edit: Edit | None = None,
    controls: Sequence[Pictures] = (),
    batch_size: int = 64,
    adapters: Sequence[Adapter | str | Path] = (),
    device: torch.device | str | None = None,
    compiled: bool = False,
) -> ImageGenerator:
    """The generator of images that :func:`generate` runs; see there for arguments and errors."""
    model = with_adapters(model if isinstance(model, Model) else load(model), adapters)
    sampling = sampling or Sampling()
    if seeds is None:
        if prompts is None:
            raise ValueError("seeds or prompts must be given; give at least one seed")
        seeds = range(len(prompts))
    dataset = conditioning if isinstance(conditioning, ImageDataset) else None
    values = None if isinstance(conditioning, ImageDataset) else Conditioning.of(conditioning)
    if controls:
        sources = [as_dataset(images, "control images") for images in controls]
        known = {} if values is None else values.values
        values = Conditioning({**known, **control_values(model, sources, seeds)})
    conditioning = conditions_of_seeds(
        model, seeds, values=values, dataset=dataset, classes=classes
    )
    if prompts is None:
        texts = captions_of_seeds(model, dataset, seeds)
    else:
        texts = prompts_of_seeds(prompts, seeds)
        if guide is None and sampling.guidance != 1:
            guide = "unconditional"
    return ImageGenerator(
        model,
        seeds,
        conditioning,
        sampling,
        loaded_guide(guide),
        max(1, min(batch_size, len(seeds))),
        processes.device() if device is None else torch.device(device),
        compiled,
        texts,
        negative_prompt,
        edit,
    )


def loaded_guide(guide: Guide | str | Path) -> Guide:
    """The guide, loaded if it is the name of a model."""
    if guide is None or isinstance(guide, Model):
        return guide
    return "unconditional" if guide == "unconditional" else load(guide)


def fill(
    generators: Sequence[ImageGenerator],
    folders: Sequence[ImageFolder],
    progress: Progress | None = None,
) -> None:
    """Generate the images that are missing in folders or ZIP files.

    Under torchrun this process makes its share; the first one then waits for the others, and packs
    what is to be a ZIP file.

    Args:
        generators: One per folder.
        folders: Folders and ZIP files for the images.
        progress: Called with (images made, images to make).

    Raises:
        ValueError: If a folder holds images of other settings, or another command writes to it.
    """
    with contextlib.ExitStack() as stack:
        claims = [stack.enter_context(folder.claim()) for folder in folders]
        _fill(generators, folders, claims, progress)


def _fill(
    generators: Sequence[ImageGenerator],
    folders: Sequence[ImageFolder],
    claims: Sequence[Claim | None],
    progress: Progress | None,
) -> None:
    rank, world = processes.rank(), processes.world_size()
    missing = [
        folder.open(
            generator.settings,
            generator.seeds,
            generator.seed_conditioning,
            prompts=generator.prompts,
            earlier=generator.earlier_settings,
        )
        for generator, folder in zip(generators, folders, strict=True)
    ]
    done, total = 0, sum(map(len, missing))

    def made(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    if total:
        made(0)
    for generator, folder, claim, places in zip(generators, folders, claims, missing, strict=True):
        # shares are of all seeds: processes need not begin together or see the same gaps
        part = generator.part([i for i in places if i % world == rank])
        for count in folder.write_all(part, ahead=max(2 * WRITERS, 2 * part.rows)):
            made(count)
        if claim is not None:
            folder.wait([generator.seeds[i] for i in places if i % world], made)
            claim.check()
            folder.finish()
