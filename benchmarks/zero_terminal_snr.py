"""The effect of zero terminal SNR: digits on black and on white, trained with it and without.

Even classes are white on black, odd ones black on white, so that the mean brightness of an image
follows from its class. A schedule that ends at a finite level lets training see that brightness
through the noise even at its last level; sampling begins from noise that has none, and images drift
to the average. Both runs are equal but for the rescale of arXiv 2305.08891: Stable Diffusion's
schedule, moved from 64x64 to 8x8 pixels by sigma' = sigma 8/64, TrigFlow, 300 steps of 64 images,
trailing steps of Heun's method. The run with it is also sampled under guidance of weight 3, and
with its rescale of 0.7.

Example:
  python benchmarks/zero_terminal_snr.py --out runs/zero_terminal_snr
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.ddpm import trailing_sigmas
from edm2lite.plotting.images import plot_images
from edm2lite.sampling.generation import generate
from edm2lite.sampling.settings import Sampling
from edm2lite.training.config import load_config
from edm2lite.training.trainer import Trainer

SIGMA_DATA = 0.5
SHIFT = SIGMA_DATA * 8 / 64
AVERAGE = "sigma_rel=0.1"
GUIDED = {"guidance": 3.0}
RESCALED = {"guidance": 3.0, "rescale": 0.7}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/zero_terminal_snr")
@click.option("--num", default=20, show_default=True, help="Images per class.")
@click.option("--steps", default=10, show_default=True, help="Number of steps of Heun's method.")
@click.option("--picture", type=click.Path(path_type=Path), help="[default: OUT/samples.png]")
def main(out: Path, num: int, steps: int, picture: Path | None) -> None:
    """Train both, print the mean brightness of each class, and draw samples."""
    folder = out / "digits"
    if not (folder / "dataset.json").is_file():
        write_digits(folder)
    dataset = open_dataset(folder)
    real = dataset.images(range(len(dataset)))
    classes = np.asarray(dataset.labels)
    scale = real.std() / SIGMA_DATA
    encoder = [f"encoder.shift={real.mean():.2f}", f"encoder.scale={scale:.2f}"]
    images = {"real": [real[classes == c] for c in range(10)]}
    for name, rescaled in (("without", "false"), ("with", "true")):
        config = load_config("digits", [
            f"data.source={folder}", "data.label_dropout=0.1", *encoder,
            "net.parametrization=trigflow",
            f"loss={{kind: ddpm, shift: {SHIFT}, zero_terminal_snr: {rescaled}}}",
            "total_nimg=19200", "optim.ref_batches=150",
        ])  # fmt: skip
        run = out / name
        Trainer(config, run, torch.device("cpu")).train()
        levels = trailing_sigmas(config.loss.levels() * SHIFT, steps)[:-1]
        images[name] = generated(run, num, levels)
        if rescaled == "true":
            images["guided"] = generated(run, num, levels, **GUIDED)
            images["rescaled"] = generated(run, num, levels, **RESCALED)
    print(table(images))
    rows = [np.stack([group[i] for group in images[name]]) for name in images for i in range(2)]
    names = [label for name in images for label in (name, "")]
    plot_images(picture or out / "samples.png", rows, names, [str(c) for c in range(10)])


def write_digits(folder: Path) -> None:
    """scikit-learn's digits as PNG files, those of odd classes in negative."""
    digits = open_dataset("digits")
    folder.mkdir(parents=True, exist_ok=True)
    labels = []
    for i, (image, label) in enumerate(
        zip(digits.images(range(len(digits))), digits.labels, strict=True)
    ):
        name = f"{i:04d}.png"
        Image.fromarray(255 - image[0] if label % 2 else image[0]).save(folder / name)
        labels.append([name, int(label)])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


def generated(run: Path, num: int, levels: torch.Tensor, **guidance: float) -> list[np.ndarray]:
    """``num`` images of each class."""
    images = generate(
        f"{run}@{AVERAGE}",
        range(10 * num),
        classes="all",
        sampling=Sampling(sigmas=tuple(levels.tolist()), **guidance),
        guide="unconditional" if guidance else None,
        device="cpu",
    ).numpy()
    return [images[c::10] for c in range(10)]


def table(images: dict[str, list[np.ndarray]]) -> str:
    """Mean brightness of each class, 0 to 255; then the distance between black and white."""
    lines = ["| class | " + " | ".join(images) + " |", "|---|" + "---|" * len(images)]
    means = {name: np.array([group.mean() for group in groups]) for name, groups in images.items()}
    for c in range(10):
        lines.append(f"| {c} | " + " | ".join(f"{means[name][c]:.1f}" for name in images) + " |")
    gaps = {name: mean[1::2].mean() - mean[::2].mean() for name, mean in means.items()}
    errors = {name: np.abs(mean - means["real"]).mean() for name, mean in means.items()}
    for title, row in (("white - black", gaps), ("mean error", errors)):
        lines.append(f"| {title} | " + " | ".join(f"{row[name]:.1f}" for name in images) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
