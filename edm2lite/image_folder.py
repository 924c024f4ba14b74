"""A folder of generated images: what should be in it, what is, and how to fill the rest."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.generate import Generator
from edm2lite.models import Model
from edm2lite.tensorfile import replacing


class ImageFolder:
    """Images ``<seed / 1000>/<seed>.png`` with ``dataset.json`` (classes) and ``settings.json``."""

    def __init__(self, path: Path):
        self.path = path

    def open(
        self, model: Model, seeds: Sequence[int], classes: Sequence[int] | None, num_steps: int
    ) -> None:
        """Check that the folder is free or holds images of the same settings.

        Raises:
            ValueError: It holds images of another model or other settings.
        """
        self.seeds, self.classes, self.num_steps = list(seeds), classes, num_steps
        settings = {"weights": model.identity, "steps": num_steps}
        file = self.path / "settings.json"
        if file.is_file():
            there = json.loads(file.read_text(encoding="utf-8"))
            different = [key for key in settings if there.get(key) != settings[key]]
            if different:
                raise ValueError(
                    f"{self.path} holds images of other {' and '.join(different)}; remove it, or"
                    " give another --out"
                )
        else:
            with replacing(file) as stream:
                json.dump(settings, stream)
        self.labels = self._read_labels()
        wanted = dict(zip(seeds, classes, strict=True)) if classes is not None else {}
        clash = [s for s, c in wanted.items() if self.labels.get(s, c) != c]
        if clash:
            raise ValueError(
                f"{self.path} holds seed {clash[0]} as class {self.labels[clash[0]]}; give another"
                " --out"
            )
        self.missing = [i for i, seed in enumerate(seeds) if not self.file(seed).is_file()]

    def file(self, seed: int) -> Path:
        return self.path / f"{seed // 1000:06d}" / f"{seed:06d}.png"

    def fill(self, model: Model, batch_size: int, bar: Any) -> None:
        """Generate what is missing; ``bar`` moves by images."""
        if self.missing:
            classes = None if self.classes is None else [self.classes[i] for i in self.missing]
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            generator = Generator(
                model, [self.seeds[i] for i in self.missing], classes,
                num_steps=self.num_steps, batch_size=batch_size, device=device,
            )  # fmt: skip
            for batch in generator:
                if batch.labels is not None:
                    self.labels.update(zip(batch.seeds, batch.labels, strict=True))
                    self._write_labels()  # before the images: an image always has its class
                for seed, image in zip(batch.seeds, batch.images.numpy(), strict=True):
                    save_png(self.file(seed), image)
                bar.update(len(batch.seeds))

    def images(self) -> NDArray[np.uint8]:
        """[N, C, H, W] in the order of the seeds."""
        dataset = open_dataset(self.path)
        names = sorted(self.path.rglob("*.png"))
        index = {int(path.stem): i for i, path in enumerate(names)}
        return dataset.images([index[seed] for seed in self.seeds])

    def _read_labels(self) -> dict[int, int]:
        file = self.path / "dataset.json"
        if not file.is_file():
            return {}
        table = json.loads(file.read_text(encoding="utf-8"))["labels"]
        return {int(Path(name).stem): label for name, label in table}

    def _write_labels(self) -> None:
        rows = [
            [self.file(s).relative_to(self.path).as_posix(), c]
            for s, c in sorted(self.labels.items())
        ]
        with replacing(self.path / "dataset.json") as stream:
            json.dump({"labels": rows}, stream)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """uint8 [C, H, W], C = 1 or 3, to a PNG file, atomically."""
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")  # no fsync: images are cheap to make again
    temporary.write_bytes(buffer.getvalue())
    temporary.replace(path)
