"""Pictures of docs/control.md from finished runs: emoji told other words, filled in, and colored.

python benchmarks/control_emoji.py --emoji runs/emoji emoji.zip --gray runs/color gray.zip
    --edges runs/drawn edges.zip
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from control import SAMPLING, Pixels, condition_pixels, draw

from edm2lite import generate, load, open_dataset
from edm2lite.sampling import Edit, Sampling

OTHER_WORDS = {
    "red heart": "blue heart", "grinning face": "angry face", "red apple": "green apple",
    "cat face": "dog face", "flag of italy": "flag of germany", "full moon": "sun",
    "red circle": "green circle", "yellow heart": "red heart",
}  # fmt: skip


@click.command()
@click.option("--emoji", nargs=2, metavar="RUN DATA", help="Run of the preset emoji.")
@click.option("--gray", nargs=2, metavar="RUN DATA", help="Run of emoji-color on gray images.")
@click.option("--edges", nargs=2, metavar="RUN DATA", help="The same on edges; with --gray.")
@click.option("--pictures", type=click.Path(path_type=Path), default=Path("docs/images"))
def main(
    emoji: tuple[str, str] | None,
    gray: tuple[str, str] | None,
    edges: tuple[str, str] | None,
    pictures: Path,
) -> None:
    """Draw the runs that are given."""
    if emoji is not None:
        edited_emoji(pictures, *emoji)
    if gray is not None and edges is not None:
        colored(pictures, {"gray": gray, "edges": edges})


def colored(pictures: Path, runs: dict[str, tuple[str, ...]]) -> None:
    """Emoji told their gray versions, and others told their edges, with two seeds each."""
    shown: dict[str, Pixels] = {}
    for name, (run, data) in runs.items():
        model, dataset = load(f"{run}@sigma_rel=0.10"), open_dataset(data)
        rows = [int(row) for row in np.random.default_rng(0).permutation(len(dataset))[:12]]
        hints = np.stack([condition_pixels(dataset, row) for row in rows])
        shown[name] = hints.repeat(3, axis=1)
        for first in (0, 1000):
            seeds = range(first, first + len(rows))
            told = dataset.conditioning(rows, names=["image"])
            made = generate(model, seeds, conditioning=told, sampling=SAMPLING)
            shown[f"from {name}, seed {1 + first // 1000}"] = made.numpy()
        shown.setdefault("real", dataset.images(rows))
    shown["real"] = shown.pop("real")
    draw(pictures, "color", shown, [])


def edited_emoji(pictures: Path, run: str, data: str) -> None:
    """Emoji told other words, by strength, and their right halves filled in."""
    model, dataset = load(f"{run}@sigma_rel=0.05"), open_dataset(data)
    assert dataset.captions is not None
    places = {texts[0]: i for i, texts in enumerate(dataset.captions.texts)}
    real = torch.from_numpy(dataset.images([places[name] for name in OTHER_WORDS]))
    settings = Sampling(num_steps=16, guidance=2.0)
    shown, num = {"real": real.numpy()}, len(OTHER_WORDS)
    for strength in (0.5, 0.7, 0.9):
        edit = Edit(images=real, strength=strength)
        words = list(OTHER_WORDS.values())
        made = generate(model, range(num), prompts=words, edit=edit, sampling=settings)
        shown[f"strength {strength:g}"] = made.numpy()
    mask = torch.zeros(1, 1, 32, 32, dtype=torch.uint8)
    mask[:, :, :, 16:] = 255
    edit = Edit(images=real, mask=mask, resample=2)
    made = generate(model, range(num), prompts=list(OTHER_WORDS), edit=edit, sampling=settings)
    assert made[..., :16].equal(real[..., :16])  # known pixels are kept
    shown["filled in"] = made.numpy()
    draw(pictures, "emoji", shown, [f"{name}: {other}" for name, other in OTHER_WORDS.items()])


if __name__ == "__main__":
    main()
