"""EMA lengths as curves: how much each moment of a run weighs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edm2lite.ema.lengths import Length
from edm2lite.plotting.figures import new_figure, save_figure
from edm2lite.units import format_amount


def plot_lengths(path: Path, lengths: Sequence[Length], nimg: float | None = None) -> None:
    """Power functions (solid), and the EMA of constant decay (dashed) and window (dotted) as long.

    The area under each curve is 1 (but for what the EMA holds of the initial weights). A dot marks
    the median: half the weight is younger.

    Args:
        lengths: One colour each.
        nimg: Training time in images, to say so at the axis.
    """
    figure, axes = new_figure(figsize=(7.2, 4.2))
    t = np.linspace(0, 1, 4001)
    for i, length in enumerate(lengths):
        color = f"C{i}"
        rate = np.log(2) / length.half_life
        exponent = length.gamma + 1
        power = exponent * t**length.gamma
        axes.fill_between(t, power, color=color, alpha=0.12, lw=0)
        name = f"sigma_rel {length.sigma_rel:.3g}, gamma {length.gamma:.4g}"
        axes.plot(t, power, color=color, lw=1.8, label=name)
        axes.plot(t, rate * np.exp(rate * (t - 1)), color=color, lw=1.2, ls="--")
        edge = 1 - length.window
        axes.plot([edge, edge, 1], [0, 1 / length.window, 1 / length.window], color=color, ls=":")
        middle = 1 - length.median_age
        axes.plot(middle, exponent * middle**length.gamma, "o", color=color, ms=5)
    for style, name in (("-", "power function"), ("--", "constant decay"), (":", "window")):
        axes.plot([], [], color="0.4", ls=style, label=f"{name}{_as_long(style, lengths)}")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    now = "" if nimg is None else f" (1 = {format_amount(nimg)} images)"
    axes.set_xlabel(f"when the weights were seen, as a fraction of the training time{now}")
    axes.set_ylabel("weight in the average")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    save_figure(path, figure)


def _as_long(style: str, lengths: Sequence[Length]) -> str:
    return "" if style == "-" else f", as long by {lengths[0].by}"
