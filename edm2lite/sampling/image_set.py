"""Generated images in memory: a tensor that knows its seeds, and can show and save itself."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from edm2lite.image_grid import channels_last, labeled_mosaic, mosaic
from edm2lite.sampling.image_folder import ImageFolder
from edm2lite.sampling.images import ImageGenerator
from edm2lite.sampling.launched import GeneratedBatch

_ROW = 8  # images that are shown in one row, if there are no more
_SHOWN = 256  # images that a notebook shows


class Images(Tensor):
    """Generated images, uint8 [N, C, H, W] on the CPU.

    It is a tensor, and every operation on it gives a plain one: ``images[0]``, ``images.float()``,
    ``images.numpy()``. A notebook shows it as a picture.

    Attributes:
        seeds: Seed of each image.
        labels: Class of each image; None for a model without classes.
        prompts: Prompt of each image; None without any.
        names: What each image shows, in words: its prompt, or the name of its class; None for
            images without prompts of a model that does not name its classes.

    Example:
        >>> from edm2lite import generate
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.models import Model, PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> from edm2lite.sampling import Sampling
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=2, model_channels=8,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> told = {"class_names": '["cat", "dog"]'}
        >>> model = Model("tiny", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), told)
        >>> images = generate(model, [5, 6, 7], classes=["dog"], sampling=Sampling(num_steps=2))
        >>> images
        Images(3 of 1 x 8 x 8, seeds 5 to 7: dog)
        >>> images.grid().width, images[0].float().shape
        (208, torch.Size([1, 8, 8]))
    """

    seeds: list[int]
    labels: list[int] | None
    prompts: list[str] | None
    names: list[str] | None = None  # a value here hides Tensor.names, which torch had before 2.13
    _generator: ImageGenerator

    # operations on the tensor give plain tensors: a part of it has other seeds
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(generator: ImageGenerator, pixels: Tensor) -> Images:
        """The images that a generator has made.

        Args:
            generator: The generator.
            pixels: All its images, uint8 [N, C, H, W] on the CPU.
        """
        images = torch.Tensor._make_subclass(Images, pixels)
        images._generator, images.seeds = generator, list(generator.seeds)
        images.labels = generator.labels
        prompts = list(generator.prompts or ())
        images.prompts = prompts if any(prompts) else None
        images.names, model = images.prompts, generator.model
        if images.names is None and model.class_names and images.labels is not None:
            images.names = [model.class_title(label) for label in images.labels]
        return images

    def grid(self, columns: int | None = None, *, names: bool = True) -> Image.Image:
        """All images in one picture, with their names.

        Small images are enlarged by a whole factor.

        Args:
            columns: Number of images in a row. [default: up to 8 images are in one row, more in a
                square]
            names: Whether to write what is in :attr:`names`.

        Raises:
            ValueError: If there are no images, or ``columns`` is below 1.
        """
        return self._grid(len(self), columns, names)

    def save(self, out: str | Path) -> Path:
        """Write the images to a folder or ZIP file, as ``generate(out=...)`` does.

        Args:
            out: Folder, or ZIP file. Images that are there are kept.

        Raises:
            ValueError: If ``out`` holds images of other settings, or other files.
        """
        made, folder = self._generator, ImageFolder(Path(out))
        with folder.claim():
            folder.open(
                made.settings,
                self.seeds,
                made.seed_conditioning,
                prompts=made.prompts,
                earlier=made.earlier_settings,
            )
            pixels = self.as_subclass(Tensor)
            folder.write(GeneratedBatch(self.seeds, made.seed_conditioning, pixels))
            folder.finish()
        return Path(out)

    def _grid(self, num: int, columns: int | None, names: bool) -> Image.Image:
        if not num:
            raise ValueError("a picture needs at least one image, there are none; give seeds")
        if columns is None:
            columns = num if num <= _ROW else math.ceil(math.sqrt(num))
        if columns < 1:
            raise ValueError(f"columns must be at least 1, got {columns}")
        pixels = list(self.numpy()[:num])
        if names and self.names is not None:
            return Image.fromarray(channels_last(labeled_mosaic(pixels, columns, self.names[:num])))
        return Image.fromarray(channels_last(mosaic(pixels, columns)))

    def _repr_png_(self) -> bytes | None:
        """The picture that a notebook shows."""
        if not len(self):
            return None
        buffer = io.BytesIO()
        self._grid(min(len(self), _SHOWN), None, True).save(buffer, format="PNG")
        return buffer.getvalue()

    def __repr__(self) -> str:  # type: ignore[override]
        size = " x ".join(map(str, self.shape[1:]))
        if not len(self):
            return f"Images(0 of {size})"
        first, last = self.seeds[0], self.seeds[-1]
        text = f"seed {first}" if len(self) == 1 else f"seeds {first} to {last}"
        if self.names is not None:
            told = list(dict.fromkeys(self.names))
            text += f": {', '.join(told[:4])}{', ...' if len(told) > 4 else ''}"
        return f"Images({len(self)} of {size}, {text})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Images:
        return Images.of(self._generator, self.as_subclass(Tensor).clone())

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled, as by ``torch.save``, it is a plain tensor."""
        return self.as_subclass(Tensor).__reduce_ex__(protocol)
