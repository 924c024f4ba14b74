"""Numbers and pictures of docs/finetune.md: digits without the nines, and twenty nines.

A model of the digits 0 to 8 is fine-tuned on twenty nines in every way. For each way: how many of
its nines are nines, and how many images of other classes are of their class, judged by an SVC on
pixels; what is trained and stored; and the time of a step. The pictures show each way, strengths of
the low-rank adapter, and lengths of its average. What is there already is not made again.

Example:
  python benchmarks/finetune.py --runs runs/finetune --pictures docs/images
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite import Sampling, generate, load, open_dataset
from edm2lite.models import Model
from edm2lite.plotting.images import plot_images
from edm2lite.training import Trainer, load_config

WAYS = {
    "LoRA of rank 4": ["tune.kind=lora"],
    "a learned class": ["tune={kind: embedding, label: 9}", "optim.ref_lr=0.03"],
    "a hypernetwork": ["tune.kind=hypernetwork"],
    "everything": ["tune={kind: full, freeze_uncertainty: true}"],
}
PRIOR = ["prior={generate: 180, classes: [0, 1, 2, 3, 4, 5, 6, 7, 8]}", "total_nimg=9600"]
KEPT = {  # as many new images, and as many again that the model has made
    "LoRA, with a prior": ["tune.kind=lora", *PRIOR],
    "everything, with a prior": ["tune.kind=full", *PRIOR],
}
NEW, STRENGTHS, LENGTHS = 9, (0.0, 0.25, 0.5, 1.0, 1.5), (0.02, 0.05, 0.1, 0.2)
Rows = list[NDArray[np.uint8]]


@click.command()
@click.option("--runs", type=click.Path(path_type=Path), required=True, help="Folder of the runs.")
@click.option("--base-nimg", default=64000, show_default=True, help="Images of the base.")
@click.option("--num", default=100, show_default=True, help="Images per class.")
@click.option("--steps", default=16, show_default=True, help="Number of steps of Heun's method.")
@click.option("--pictures", type=click.Path(path_type=Path), help="[default: that of the runs]")
@click.option("--set", "changes", multiple=True, help="Change of all runs but the base.")
def main(
    runs: Path, base_nimg: int, num: int, steps: int, pictures: Path | None, changes: Sequence[str]
) -> None:
    """Train, measure and draw."""
    torch.set_num_threads(1)
    train("digits-nine", runs / "nine", f"total_nimg={base_nimg}")
    name, sampling, judge = f"{runs / 'nine'}@sigma_rel=0.10", Sampling(num_steps=steps), judged()
    base = load(name)
    print("| trained | new class | other classes | trained numbers | Adam | file | step |")
    print("|---|---|---|---|---|---|---|")
    shown = {"the model": base}
    print(f"| nothing | {scores(base, num, sampling, judge)} | | | | |")
    for title, settings in WAYS.items():
        run = runs / title.replace(" ", "-")
        settings = [f"init={name}", *settings, *changes]
        train("digits-tenth", run, *settings)
        shown[title] = load(f"{run}@sigma_rel=0.10")
        costs = cost("digits-tenth", run, *settings)
        print(f"| {title} | {scores(shown[title], num, sampling, judge)} | {costs} |", flush=True)
    kept = {"the model": base}
    for title, settings in KEPT.items():
        run = runs / title.replace(" ", "-")
        train("digits-tenth", run, f"init={name}", *settings, *changes)
        without, _, _ = title.partition(",")
        kept |= {t: model for t, model in shown.items() if t.startswith(without)}
        kept[title] = load(f"{run}@sigma_rel=0.10")
        print(f"| {title} | {scores(kept[title], num, sampling, judge)} | | | | |", flush=True)
    folder, lora = pictures or runs, runs / "LoRA-of-rank-4"
    draw_classes(folder / "finetune-ways.png", shown, sampling)
    draw_classes(folder / "finetune-prior.png", kept, sampling)
    strong = [load(name, [f"{lora}@sigma_rel=0.10:{s}"]) for s in STRENGTHS]
    draw(folder / "finetune-strengths.png", strong, [f"{s:g}" for s in STRENGTHS], sampling)
    lengths = [load(f"{lora}@sigma_rel={x},max_error=1") for x in LENGTHS]
    draw(folder / "finetune-lengths.png", lengths, [f"{x:.0%}" for x in LENGTHS], sampling)


def train(config: str, run: Path, *changes: str) -> None:
    """Train if the run has not ended."""
    if not (run / "last.safetensors").is_file():
        Trainer(load_config(config, changes), run, torch.device("cpu")).train()


def cost(config: str, run: Path, *changes: str) -> str:
    """What is trained and stored, and how long a step takes."""
    trainer = Trainer(load_config(config, changes), run / "timing", torch.device("cpu"))
    trained = sum(p.numel() for p in trainer.net.parameters() if p.requires_grad)
    trainer.train_step()
    times = []
    for _ in range(20):
        began = time.process_time()  # of one thread, whatever else runs
        trainer.nimg += trainer.config.batch_size
        trainer.train_step()
        times.append(time.process_time() - began)
    trainer.close()
    size = (run / "last.safetensors").stat().st_size
    return (
        f"{trained} | {8 * trained / 1024:.0f} KiB | {size / 1024:.0f} KiB |"
        f" {1000 * np.median(times):.0f} ms"
    )


def judged() -> Any:
    """An SVC that has seen all digits, of pixels from 0 to 16."""
    from sklearn.svm import SVC

    digits = open_dataset("digits")
    pixels = digits.images(range(len(digits))).reshape(len(digits), -1) * (16 / 255)
    return SVC(gamma=0.001).fit(pixels, digits.labels)


def scores(model: Model, num: int, sampling: Sampling, judge: Any) -> str:
    """Share of images that are of their class: of the new one, and of all others."""
    classes = np.repeat(np.arange(10), num)
    images = generate(
        model, range(len(classes)), classes=classes.tolist(), sampling=sampling
    ).numpy()
    right = judge.predict(images.reshape(len(images), -1) * (16 / 255)) == classes
    new = classes == NEW
    return f"{right[new].mean():.1%} | {right[~new].mean():.1%}"


def grid_row(
    model: Model, sampling: Sampling, seeds: Sequence[int], classes: list[int]
) -> NDArray[np.uint8]:
    """Images of some seeds and classes."""
    return generate(model, seeds, classes=classes, sampling=sampling).numpy()


def draw_classes(path: Path, models: dict[str, Model], sampling: Sampling) -> None:
    """An image of every class by each model, a row each."""
    rows = [grid_row(model, sampling, range(10), [*range(10)]) for model in models.values()]
    plot_images(path, rows, list(models), [*map(str, range(10))])


def draw(path: Path, models: Sequence[Model], titles: list[str], sampling: Sampling) -> None:
    """Nines of several models and the same seeds, a row each."""
    seeds = range(10)
    rows = [grid_row(model, sampling, seeds, [NEW] * 10) for model in models]
    plot_images(path, rows, titles, [*map(str, seeds)])


if __name__ == "__main__":
    main()
