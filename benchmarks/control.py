"""Numbers and pictures of docs/control.md: images that a network follows, enlarges, or begins with.

    python benchmarks/control.py --out runs/control-page --pictures docs/images

Trains the presets digits, digits-superres and digits-control where they are not there yet, and
measures: how far results agree with what they enlarge, and their Fréchet distance against bicubic
interpolation; how far outlines of results agree with the outlines that they follow, the share of
right classes, and magnitudes at the entries of the decoder, by strength. About 15 minutes on one
core. The exit code is 1 if a bar of the page is missed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.svm import SVC
from torch import Tensor

from edm2lite import evaluate, generate, load, open_dataset, reconstruct
from edm2lite.dataset import Conversion, ImageDataset, convert_images, open_collection
from edm2lite.dataset.hints import outline
from edm2lite.metrics import write_statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.models.model import Model
from edm2lite.network import controlnet
from edm2lite.plotting.images import plot_images
from edm2lite.sampling import Edit, Sampling
from edm2lite.training import Trainer, load_config

LENGTH = 0.13
SAMPLING = Sampling(num_steps=18)
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SHOWN = 16
Pixels = NDArray[np.uint8]


class Page:
    """What the page needs, in a folder: data sets, runs and a classifier, made when asked for."""

    def __init__(self, out: Path, pictures: Path, num: int):
        self.out, self.pictures, self.num = out, pictures, num
        self.missed: list[str] = []
        out.mkdir(parents=True, exist_ok=True)
        self.weights, self.reference = out / "classifier.safetensors", out / "ref.safetensors"
        if not self.reference.is_file():
            train_classifier(self.weights)
            write_statistics("digits", self.reference, "digits", weights=self.weights)
        self.digits = open_dataset("digits")
        assert self.digits.labels is not None
        real = self.digits.images(range(len(self.digits)))
        self.svc = SVC(gamma=0.001 * 16**2).fit(_flat(real), self.digits.labels)

    def told(self, name: str, hint: str) -> ImageDataset:
        """The digits with a condition image each."""
        path = self.out / f"{name}.zip"
        if not path.is_file():
            convert_images(open_collection("digits"), path, Conversion(hint=hint))
        return open_dataset(path)

    def run(self, name: str, preset: str, *changes: str) -> Path:
        """The folder of a finished run."""
        folder = self.out / name
        if not (folder / "last.safetensors").is_file():
            click.echo(f"training {preset}", err=True)
            trainer = Trainer(load_config(preset, changes), folder)
            trainer.train()
            if trainer.stopped_by:
                sys.exit(f"stopped by {trainer.stopped_by}; the same command continues")
        return folder

    def distance(self, images: Tensor | Pixels, name: str) -> str:
        """Fréchet distance to the digits, with its interval."""
        place = self.out / f"{name}.npz"
        np.savez(place, images=np.asarray(images))
        arrays = np.asarray(images)
        source = ImageDataset(name, len(arrays), (1, 8, 8), lambda i: arrays[i])
        (score,) = evaluate(source, self.reference, "fd", weights=[self.weights])
        low, high = score.interval
        return f"{score.value:.2f} ({low:.2f} to {high:.2f})"

    def accuracy(self, images: Tensor, classes: list[int]) -> float:
        """Share of images that an SVC on pixels of the real digits takes for their class."""
        return float((self.svc.predict(_flat(images.numpy())) == np.array(classes)).mean())

    def bar(self, text: str, is_met: bool) -> None:
        """Note whether a bar is met."""
        if not is_met:
            self.missed.append(text)

    def draw(self, name: str, rows: dict[str, Pixels], columns: list[str]) -> None:
        """A picture with a row of images for each name."""
        draw(self.pictures, name, rows, columns)


def draw(pictures: Path, name: str, rows: dict[str, Pixels], columns: list[str]) -> None:
    """A picture control-NAME.png with a row of images for each name."""
    path = pictures / f"control-{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_images(path, list(rows.values()), list(rows), columns)
    click.echo(path)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/control-page"))
@click.option("--pictures", type=click.Path(path_type=Path), default=Path("docs/images"))
@click.option("--num", default=1797, help="Number of images per row of a table.")
def main(out: Path, pictures: Path, num: int) -> None:
    """Measure and draw."""
    page = Page(out, pictures, num)
    enlarged(page)
    followed(page)
    edited(page)
    if page.missed:
        sys.exit("missed: " + "; ".join(page.missed))


def enlarged(page: Page) -> None:
    """From 4x4 to 8x8 pixels, against bicubic interpolation."""
    lowres = page.told("lowres", "lowres:2")
    run = page.run("superres", "digits-superres", f"data.source={page.out / 'lowres.zip'}")
    seeds, model = range(page.num), load(f"{run}@sigma_rel={LENGTH}")
    made = generate(model, seeds, conditioning=lowres, sampling=SAMPLING)
    rows = [seed % len(lowres) for seed in seeds]
    small = np.stack([condition_pixels(lowres, row) for row in rows])[:, :, ::2, ::2]
    bicubic = np.stack([_bicubic(image[0]) for image in small])[:, None]
    real = page.digits.images(rows)
    print("\n| from 4x4 pixels | FD | RMS to the input |\n|---|---|---|")
    errors = {}
    for name, images in {"network": made.numpy(), "bicubic": bicubic, "real": real}.items():
        means = images.reshape(len(images), 1, 4, 2, 4, 2).mean(axis=(3, 5))
        errors[name] = float(np.sqrt(np.square((means - small) / 255).mean()))
        print(f"| {name} | {page.distance(images, name)} | {errors[name]:.4f} |")
    page.bar("means within 0.05 of the input", errors["network"] <= 0.05)
    shown = {"input": small, "bicubic": bicubic, "network": made.numpy(), "real": real}
    page.draw("superres", {name: images[:SHOWN] for name, images in shown.items()}, [])


def followed(page: Page) -> None:
    """Outlines to digits, by strength."""
    outlines = page.told("outlines", "outline")
    base_run = page.run("digits", "digits")
    base = f"{base_run}@sigma_rel={LENGTH}"
    source = f"data.source={page.out / 'outlines.zip'}"
    run = page.run("control", "digits-control", f"init={base}", "tune.kind=controlnet", source)
    (rebuilt,) = reconstruct(run, sigma_rel=[LENGTH], out=page.out / "averages")
    net = rebuilt.path
    rng = np.random.default_rng(0)
    rows = [int(row) for row in rng.integers(len(outlines), size=page.num)]
    assert outlines.labels is not None
    classes = [int(outlines.labels[row]) for row in rows]
    hints = np.stack([condition_pixels(outlines, row) for row in rows])
    told = outlines.conditioning(rows)
    print("\n| strength | outline agrees | right class | magnitudes | with sums |")
    print("|---|---|---|---|---|")
    made, right, spread = {}, {}, {}
    for strength in STRENGTHS:
        model = load(base, [f"{net}:{strength}"])
        own = told if strength else told.only(["label"])
        made[strength] = generate(model, range(page.num), conditioning=own, sampling=SAMPLING)
        agrees = agreement(made[strength].numpy(), hints)
        right[strength] = page.accuracy(made[strength], classes)
        spread[strength] = magnitudes(model, outlines) if strength else np.ones(1)
        with sums():
            again = load(base, [f"{net}:{strength}"])
            plain = magnitudes(again, outlines) if strength else np.ones(1)
        print(
            f"| {strength:g} | {agrees:.3f} | {right[strength]:.1%} | {span(spread[strength])} |"
            f" {span(plain)} |"
        )
        if strength == 1:
            page.bar("outlines agree to 0.8", agrees >= 0.8)
            page.bar("classes within 1 point", right[1.0] >= right[0.0] - 0.01)
    page.bar("magnitudes within 5 %", all(abs(v - 1).max() <= 0.05 for v in spread.values()))
    real = page.digits.images(rows[:SHOWN])
    shown = {"outline": hints[:SHOWN], "real": real}
    shown |= {f"strength {s:g}": images[:SHOWN].numpy() for s, images in made.items()}
    page.draw("strengths", shown, [str(c) for c in classes[:SHOWN]])


def agreement(images: Pixels, hints: Pixels) -> float:
    """Mean correlation of the outline of an image with that which it was to follow."""
    found = [
        np.corrcoef(outline(image[0]).ravel(), hint.ravel())[0, 1]
        for image, hint in zip(images, hints, strict=True)
    ]
    return float(np.nan_to_num(found).mean())


@torch.no_grad()
def magnitudes(model: Model, dataset: ImageDataset) -> NDArray[np.float64]:
    """RMS of what each block of the decoder is given, divided by that without control."""
    net = model.net.eval()
    images = model.encoder.encode(torch.from_numpy(dataset.images(range(256))))
    told = dataset.conditioning(range(256), names=net.config.backbone.condition_names)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    found: list[list[float]] = []
    for angles in (1.0, 0.0):
        for control in net.backbone.controls.values():
            for join in control.joins:
                join.angles.data.mul_(angles)
        seen: list[float] = []

        def note(module: torch.nn.Module, args: Any, seen: list[float] = seen) -> None:
            seen.append(float(args[0].square().mean().sqrt()))

        hooks = [block.register_forward_pre_hook(note) for block in net.backbone.dec.values()]
        for sigma in (0.1, 0.5, 2.0):
            net(images + sigma * noise, torch.tensor(sigma), told)
        for hook in hooks:
            hook.remove()
        found.append(seen)
    return np.array(found[0]) / np.array(found[1])


@contextmanager
def sums() -> Iterator[None]:
    """Let controls add to the skip connections, as ControlNet does in other networks."""

    def added(join: controlnet.Join, x: Tensor, features: Tensor) -> Tensor:
        return x + join.angles[:, None, None] * join.conv(features)

    joined = controlnet.Join.forward
    controlnet.Join.forward = added  # type: ignore[method-assign]
    try:
        yield
    finally:
        controlnet.Join.forward = joined  # type: ignore[method-assign]


def edited(page: Page) -> None:
    """Variations of real digits by strength, and their upper halves filled in."""
    model = load(f"{page.run('digits', 'digits')}@sigma_rel={LENGTH}")
    assert page.digits.labels is not None
    rows = [int(np.flatnonzero(page.digits.labels == c % 10)[20 + c]) for c in range(SHOWN)]
    real, classes = torch.from_numpy(page.digits.images(rows)), [c % 10 for c in range(SHOWN)]
    shown = {"real": real.numpy()}
    for strength in (0.3, 0.5, 0.7, 0.9):
        edit = Edit(images=real, strength=strength)
        made = generate(model, range(SHOWN), classes=classes, edit=edit, sampling=SAMPLING)
        shown[f"strength {strength:g}"] = made.numpy()
    page.draw("variations", shown, [str(c) for c in classes])
    mask = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    mask[:, :, :4] = 255
    hidden = torch.where(mask >= 128, real.float().mean().to(torch.uint8), real)
    shown = {"real": real.numpy(), "hidden": hidden.numpy()}
    for times in (1, 4):
        edit = Edit(images=real, mask=mask, resample=times)
        made = generate(model, range(SHOWN), classes=classes, edit=edit, sampling=SAMPLING)
        page.bar("known pixels are kept", made[:, :, 4:].equal(real[:, :, 4:]))
        shown[f"resample {times}"] = made.numpy()
    page.draw("filled", shown, [str(c) for c in classes])


def condition_pixels(dataset: ImageDataset, row: int) -> Pixels:
    found = dataset.extra_conditions[0].drawn(row)
    assert found is not None
    return found


def _bicubic(small: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(small).resize((8, 8), Image.Resampling.BICUBIC))


def _flat(images: Pixels) -> NDArray[np.float64]:
    return images.reshape(len(images), -1) / 255 * 16 / 16


def span(values: NDArray[np.float64]) -> str:
    """Smallest and largest of some numbers."""
    return f"{values.min():.2f} to {values.max():.2f}"


if __name__ == "__main__":
    main()
