"""Draws the pictures of docs/ema.md.

Example:
  python benchmarks/digits_trajectory.py digits.npy
  python benchmarks/reconstruction_error.py --only extra --extra digits.npy --csv cells.csv
  python benchmarks/plot_ema.py cells.csv docs/images
"""

from __future__ import annotations

import csv
from pathlib import Path

import click
import numpy as np
from matplotlib import pyplot as plt

from edm2lite.ema import PowerFunction, planning

plt.switch_backend("agg")

COLORS = {"float32": "tab:blue", "float16": "tab:orange", "bfloat16": "tab:green"}
MARKERS = {"8": "o", "30": "s", "120": "^"}


def profiles(path: Path) -> None:
    """Density of some lengths over the run."""
    figure, axes = plt.subplots(figsize=(7, 3.4), dpi=150)
    t = np.linspace(0, 1, 801)
    for sigma_rel in (0.02, 0.05, 0.10, 0.15, 0.20, 0.25):
        gamma = PowerFunction.of_width(sigma_rel, 1).gamma
        axes.plot(t, (gamma + 1) * t**gamma, label=f"sigma_rel {sigma_rel:.2f}, gamma {gamma:.2f}")
    axes.set(ylim=(0, 20), xlim=(0, 1), xlabel="training time, of the whole run")
    axes.set_ylabel("weight of that moment")
    axes.legend(frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    figure.savefig(path, bbox_inches="tight")


def predicted(path: Path, cells: Path) -> None:
    """Predicted against actual error of every cell with the two averages of the paper."""
    with open(cells, encoding="utf-8") as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["lengths"] == "0.05+0.1" and row["cadence"] in MARKERS
        ]
    figure, axes = plt.subplots(figsize=(5, 4.6), dpi=150)
    for row in rows:
        axes.plot(
            float(row["calibrated"]),
            float(row["predicted"]),
            MARKERS[row["cadence"]],
            color=COLORS[row["storage"]],
            ms=4,
            alpha=0.8,
        )
    limits = np.array([3e-7, 0.3])
    axes.plot(limits, limits, "k-", lw=0.8)
    axes.fill_between(limits, limits * 0.67, limits * 1.5, color="0.9", zorder=0)
    axes.set(xscale="log", yscale="log", xlim=limits, ylim=limits)
    axes.set_xlabel("actual error of the weights")
    axes.set_ylabel("predicted error of the weights")
    axes.set_title("digits run, averages 0.05 and 0.10, lengths 0.01 to 0.25", fontsize=9)
    handles = [plt.Line2D([], [], color=c, marker="o", ls="", label=n) for n, c in COLORS.items()]
    handles += [
        plt.Line2D([], [], color="0.4", marker=m, ls="", label=f"{n} snapshots")
        for n, m in MARKERS.items()
    ]
    axes.legend(handles=handles, frameon=False, fontsize=8)
    axes.grid(alpha=0.25)
    figure.savefig(path, bbox_inches="tight")


def disk(path: Path) -> None:
    """Disk space against the worst expected error over 0.015 to 0.25, of a planned run."""
    duration, num_params = 2048 * 2**20, 280_000_000
    wanted = planning.lengths_between(0.015, 0.25)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), dpi=150)
    for color, profiles in zip(plt.cm.tab10.colors, planning.PROFILES, strict=False):
        for dtype, style in (("float32", "-"), ("float16", "--")):
            choices = [
                planning.assess(
                    tuple(profiles),
                    every,
                    dtype,
                    duration=duration,
                    num_params=num_params,
                    target_sigma_rels=wanted,
                    movement=planning.MOVEMENT,
                )
                for every in planning.cadences(duration)
            ]
            choices.sort(key=lambda choice: choice.num_bytes)
            axes.plot(
                [choice.num_bytes / 1e9 for choice in choices],
                [choice.worst_error for choice in choices],
                style + "o",
                color=color,
                ms=4,
                label=f"{', '.join(f'{s:g}' for s in profiles)} in {dtype}",
            )
    axes.set(xscale="log", yscale="log", xlabel="disk space, GB")
    axes.set_ylabel("worst error over 0.015 to 0.25")
    axes.set_title("280M parameters, 2048 Mi images, planned", fontsize=9)
    axes.legend(frameon=False, fontsize=7)
    axes.grid(alpha=0.25)
    figure.savefig(path, bbox_inches="tight")


@click.command()
@click.argument("cells", type=click.Path(exists=True, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
def main(cells: Path, out: Path) -> None:
    """Draw from CELLS, the table of reconstruction_error.py, into the folder OUT."""
    out.mkdir(parents=True, exist_ok=True)
    profiles(out / "ema-profiles.png")
    predicted(out / "ema-predicted.png", cells)
    disk(out / "ema-disk.png")


if __name__ == "__main__":
    main()
