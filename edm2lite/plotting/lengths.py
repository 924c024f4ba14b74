"""EMA profiles as curves: the weight of each moment, and the learning rate that it emulates."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edm2lite.ema.lengths import Length
from edm2lite.plotting.figure import new_figure, save_figure
from edm2lite.units import format_amount


def plot_lengths(path: Path, lengths: Sequence[Length], nimg: float | None = None) -> None:
    """Draw each length as a power function and as the EMA and the window of equal length.

    On the left are the profiles, on the right the multipliers of the learning rate that they
    emulate, ``1 - P(t)``. Power functions are solid, EMAs of constant decay dashed, windows dotted.
    The area under each profile is 1, apart from the share of an EMA that still belongs to the
    initial weights. Dots mark the median age: half of the weight is younger, and the emulated rate
    has halved.

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
    figure = new_figure((11.5, 4.2))
    axes, rates = figure.subplots(1, 2)
    t = np.linspace(0, 1, 4001)
    for i, length in enumerate(lengths):
        color = f"C{i}"
        speed = np.log(2) / length.half_life
        exponent, past = length.gamma + 1, np.exp(speed * (t - 1))
        power = exponent * t**length.gamma
        axes.fill_between(t, power, color=color, alpha=0.12, lw=0)
        name = f"sigma_rel {length.sigma_rel:.3g}, gamma {length.gamma:.4g}"
        axes.plot(t, power, color=color, lw=1.8, label=name)
        axes.plot(t, speed * past, color=color, lw=1.2, ls="--")
        edge = 1 - length.window
        axes.plot([edge, edge, 1], [0, 1 / length.window, 1 / length.window], color=color, ls=":")
        middle = 1 - length.median_age
        axes.plot(middle, exponent * middle**length.gamma, "o", color=color, ms=5)
        rates.plot(t, 1 - t**exponent, color=color, lw=1.8)
        rates.plot(t, 1 - past, color=color, lw=1.2, ls="--")
        rates.plot([0, edge, 1], [1, 1, 0], color=color, ls=":")
        rates.plot(middle, 0.5, "o", color=color, ms=5, label=f"halves at {middle:.1%}")
    for style, name in (("-", "power function"), ("--", "constant decay"), (":", "window")):
        axes.plot([], [], color="0.4", ls=style, label=f"{name}{_agreement(style, lengths)}")
    now = "" if nimg is None else f" (1 = {format_amount(nimg)} images)"
    for one, name in ((axes, "weight in the average"), (rates, "emulated learning rate")):
        one.set_xlim(0, 1)
        one.set_ylim(bottom=0)
        one.set_xlabel(f"when the weights were seen, as a fraction of the training time{now}")
        one.set_ylabel(name)
    rates.set_xlabel("time, as a fraction of the training time")
    rates.legend(frameon=False, fontsize=9, loc="lower left")
    axes.legend(frameon=False, fontsize=9, loc="upper left")
    save_figure(path, figure)


def _agreement(style: str, lengths: Sequence[Length]) -> str:
    """What the other two kinds of average share with the power function."""
    return "" if style == "-" else f", as long by {lengths[0].by}"
