"""Numbers and pictures of docs/text.md, from a finished run of the preset emoji.

Three tables: Fréchet distance by EMA length without guidance, against the raw weights; how many of
the images of 500 training captions, drawn by lot, find the image of their caption among all, by the
weight of guidance; and the same by EMA length at weight 2. Three pictures: prompts by EMA length,
prompts by guidance, and prompts that are not in the data. What is there already is not made again.

Example:
  edm2lite dataset convert openmoji emoji.zip --resolution 32
  python -m edm2lite.training emoji --out runs/emoji
  python benchmarks/text.py runs/emoji --data emoji.zip --pictures docs/images
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from edm2lite import Sampling, evaluate, generate, open_dataset, sweep_ema
from edm2lite.dataset import ImageDataset
from edm2lite.metrics import statistics
from edm2lite.metrics.retrieval import train_retrieval
from edm2lite.plotting.images import plot_images

LENGTHS = (0.05, 0.10, 0.15, 0.20)
WEIGHTS = (1.0, 2.0, 4.0)
KNOWN = ("red heart", "grinning face", "pizza", "dog face", "rainbow", "flag of japan", "rocket",
         "four leaf clover")  # fmt: skip
UNSEEN = ("purple car", "green cat", "blue apple", "yellow heart with a face", "red fish")
Rows = list[NDArray[np.uint8]]


@click.command()
@click.argument("run", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--data", required=True, help="Data set of the run.")
@click.option("--num", default=500, show_default=True, help="Number of captions.")
@click.option("--num-fd", type=int, help="Images per distance. [default: one for each caption]")
@click.option("--steps", default=16, show_default=True, help="Number of steps of Heun's method.")
@click.option("--pictures", type=click.Path(path_type=Path), help="[default: RUN/text]")
def main(
    run: Path, data: str, num: int, num_fd: int | None, steps: int, pictures: Path | None
) -> None:
    """Measure and draw the RUN of emoji."""
    folder = run / "text"
    folder.mkdir(exist_ok=True)
    dataset, sampling = open_dataset(data), Sampling(num_steps=steps)
    weights, reference = features(dataset, folder)
    swept = sweep_ema(
        run, LENGTHS, metric="fd", ref=reference, weights=weights, conditions=dataset,
        num=num_fd or len(dataset), sampling=sampling, out=folder / "fd",
    )  # fmt: skip
    print("| EMA length | Fréchet distance | from | to |\n|---|---|---|---|")
    for point in swept.points:
        values = " | ".join(f"{x:.3f}" for x in (point.value, point.low, point.high))
        print(f"| {length(point.sigma_rel)} | {values} |")
    best = min(swept.points, key=lambda point: point.value).sigma_rel
    captions = drawn(dataset, num)

    def recall(sigma_rel: float | None, weight: float) -> str:
        images = folder / f"{length(sigma_rel).replace(' ', '')}-{weight:g}.zip"
        settings = dataclasses.replace(sampling, guidance=weight)
        generate(model(run, sigma_rel), prompts=captions, sampling=settings, out=images)
        scores = evaluate(images, reference, "caption_recall", weights=[weights])
        return " | ".join("{:.1%} ({:.1%} to {:.1%})".format(s.value, *s.interval) for s in scores)

    print("\n| guidance | EMA length | R@1 | R@5 |\n|---|---|---|---|")
    for sigma_rel, weight in [*((best, w) for w in WEIGHTS), *((r, 2.0) for r in (None, *LENGTHS))]:
        print(f"| {weight:g} | {length(sigma_rel)} | {recall(sigma_rel, weight)} |")
    draw(run, best, sampling, pictures or folder)


def features(dataset: ImageDataset, folder: Path) -> tuple[Path, Path]:
    """Files of a network that tells the images apart, and of its features of all of them."""
    weights, reference = folder / "features.safetensors", folder / "reference.safetensors"
    if not weights.is_file():
        found = train_retrieval(dataset, weights)
        print(f"copies of images left out: R@1 {found.first:.1%}, R@5 {found.fifth:.1%}\n")
    if not reference.is_file():
        made = statistics(dataset, "retrieval", weights=weights, keep_features=True)
        made.save(reference)
    return weights, reference


def drawn(dataset: ImageDataset, num: int) -> list[str]:
    """Captions of images that are drawn by lot."""
    assert dataset.captions is not None
    order = np.random.default_rng(0).permutation(len(dataset))[:num]
    return [dataset.captions.texts[i][0] for i in order]


def model(run: Path, sigma_rel: float | None) -> str:
    """Name of the raw weights of a run, or of an average."""
    return str(run) if sigma_rel is None else f"{run}@sigma_rel={sigma_rel}"


def length(sigma_rel: float | None) -> str:
    """Name of an EMA length in tables and pictures."""
    return "raw" if sigma_rel is None else f"{100 * sigma_rel:g} %"


def draw(run: Path, best: float | None, sampling: Sampling, out: Path) -> None:
    """Draw prompts by EMA length and by guidance, and prompts that are not in the data."""
    guided = dataclasses.replace(sampling, guidance=2.0)

    def images(sigma_rel: float | None, settings: Sampling, prompts: Sequence[str]) -> Rows:
        return list(generate(model(run, sigma_rel), prompts=prompts, sampling=settings).numpy())

    lengths = (None, *LENGTHS)
    rows = [images(sigma_rel, guided, KNOWN) for sigma_rel in lengths]
    plot(out / "text-lengths.png", rows, [length(s) for s in lengths], KNOWN)
    rows = [images(best, dataclasses.replace(sampling, guidance=w), KNOWN) for w in WEIGHTS]
    plot(out / "text-guidance.png", rows, [f"guidance {w:g}" for w in WEIGHTS], KNOWN)
    rows = [images(best, guided, [prompt] * 8) for prompt in UNSEEN]
    plot(out / "text-unseen.png", rows, UNSEEN, [f"seed {seed}" for seed in range(8)])


def plot(path: Path, rows: Sequence[Rows], names: Sequence[str], columns: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_images(path, [np.stack(row) for row in rows], names, columns)
    print(path)


if __name__ == "__main__":
    main()
