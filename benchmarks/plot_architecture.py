"""Draws the picture of docs/architecture.md.

Example:
  python benchmarks/plot_architecture.py docs/images/architecture.png
"""

from __future__ import annotations

from pathlib import Path

import click
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

plt.switch_backend("agg")

WIDTH, HEIGHT = 1.9, 0.62
ROADS = {
    "an image": (
        "tab:blue",
        [
            "data set",
            "batch\n(seed, sample)",
            "encoder",
            "noise,\nDenoisingLoss",
            "Precond\nD(x; sigma, c)",
        ],
    ),
    "a condition": (
        "tab:green",
        [
            "row of\nthe data set",
            "Conditioning",
            "dropout,\nGuided",
            "Precond\nchecks it",
            "embedder\nof the network",
        ],
    ),
    "an average": (
        "tab:orange",
        [
            "optimizer\nstep",
            "Power-\nFunctionEMA",
            "snapshots",
            "solve: errors\npredicted",
            "reconstruct",
        ],
    ),
    "and back": (
        "tab:purple",
        [
            "sweep:\nbest length",
            "metrics",
            "images\n(seed)",
            "solver,\nguidance",
            "model by name\nRUN@sigma_rel",
        ],
    ),
}


def box(axes: Axes, x: float, y: float, text: str, color: str) -> None:
    """A rounded box with its text in the middle."""
    patch = FancyBboxPatch(
        (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
        boxstyle="round,pad=0.02,rounding_size=0.12",
        facecolor=color, alpha=0.16, edgecolor=color, linewidth=1.2,
    )  # fmt: skip
    axes.add_patch(patch)
    axes.text(x, y, text, ha="center", va="center", fontsize=8.5)


def draw(path: Path) -> None:
    """The three roads from left to right, and the one back."""
    figure, axes = plt.subplots(figsize=(10.5, 4.3), dpi=150)
    step, names = 2.35, list(ROADS)
    for row, (name, (color, boxes)) in enumerate(ROADS.items()):
        y, back = -1.05 * row, name == "and back"
        axes.text(-1.25, y, name, ha="right", va="center", fontsize=10, color=color)
        for i, text in enumerate(boxes):
            box(axes, step * i, y, text, color)
            if i + 1 < len(boxes):
                ends = [(step * i + WIDTH / 2 + 0.03, y), (step * (i + 1) - WIDTH / 2 - 0.03, y)]
                start, end = reversed(ends) if back else ends
                axes.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "0.35"})
    last = step * 4
    for row in (0, 2):  # the denoiser feels the condition; a reconstruction is a model
        down = row == 2
        start = (last, -1.05 * row - HEIGHT / 2 - 0.03)
        end = (last, -1.05 * (row + 1) + HEIGHT / 2 + 0.03)
        axes.annotate(
            "",
            *((end, start) if down else (start, end)),
            arrowprops={"arrowstyle": "->", "color": "0.35"},
        )
    axes.set(xlim=(-2.6, last + 1.2), ylim=(-1.05 * (len(names) - 1) - 0.5, 0.5))
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})


@click.command()
@click.argument("path", type=click.Path(path_type=Path, dir_okay=False))
def main(path: Path) -> None:
    """Draw the roads to PATH."""
    draw(path)


if __name__ == "__main__":
    main()
