"""EMA profiles as curves: the weight of each moment of a run in an average."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edm2lite.ema.lengths import Length
from edm2lite.plotting.figure import new_figure, save_figure
from edm2lite.units import format_amount


def plot_lengths(path: Path, lengths: Sequence[Length], nimg: float | None = None) -> None:
    """Draw each length as a power function and as the EMA and the window of equal length.

    Power functions are solid, EMAs of constant decay dashed, windows dotted. The area under each
    curve is 1, apart from the share of an EMA that still belongs to the initial weights. A dot
    marks the median age: half of the weight is younger.

    Args:
        path: Name of the PNG file.
        lengths: EMA lengths, each drawn in a color of its own.
        nimg: Training time in images, stated at the axis. [default: not stated]

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lengths.png"
        >>> plot_lengths(path, [Length.of_sigma_rel(0.1)], nimg=64e6)
        >>> path.is_file()
        True
    """
    figure = new_figure((7.2, 4.2))
    axes = figure.add_subplot()
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
        axes.plot([], [], color="0.4", ls=style, label=f"{name}{_agreement(style, lengths)}")
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    now = "" if nimg is None else f" (1 = {format_amount(nimg)} images)"
    axes.set_xlabel(f"when the weights were seen, as a fraction of the training time{now}")
    axes.set_ylabel("weight in the average")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    save_figure(path, figure)


def _agreement(style: str, lengths: Sequence[Length]) -> str:
    """What the other two kinds of average share with the power function."""
    return "" if style == "-" else f", as long by {lengths[0].by}"
