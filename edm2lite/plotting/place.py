"""The place of one EMA length on the curve of a sweep, or of predicted errors."""

from __future__ import annotations

import io

from edm2lite.plotting.figure import new_figure
from edm2lite.sweep.curve import Curve
from edm2lite.units import format_percent


def place_png(curve: Curve, sigma_rel: float) -> bytes:
    """A picture of the curve with a line at one length, as the content of a PNG file.

    Args:
        curve: The curve.
        sigma_rel: The length.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> curve = Curve((0.05, 0.10, 0.20), (3.0, 1.0, 2.0), name="FD", best=1)
        >>> place_png(curve, 0.12)[:4]
        b'\\x89PNG'
    """
    figure = new_figure((6.0, 3.3), dpi=120)
    axes = figure.add_subplot()
    lengths = [100 * s for s in curve.lengths]
    is_measured = curve.best is not None
    axes.plot(lengths, curve.values, "o-" if is_measured else "-", color="tab:blue", ms=5)
    if curve.low:
        axes.fill_between(lengths, curve.low, curve.high, color="tab:blue", alpha=0.15, lw=0)
    if curve.best is not None:
        best = f"best of the sweep: {format_percent(curve.lengths[curve.best])}"
        place = [lengths[curve.best]], [curve.values[curve.best]]
        axes.plot(*place, "*", ms=15, color="tab:green", label=best)
        if curve.raw is not None and curve.raw < 4 * max(curve.values):
            axes.axhline(
                curve.raw, color="tab:gray", ls="--", label=f"raw weights, {curve.raw:.4g}"
            )
    else:
        axes.set_yscale("log")
        axes.axhline(0.02, color="tab:gray", ls="--", label="largest that is accepted, 0.02")
    value = curve.at(sigma_rel)
    label = format_percent(sigma_rel)
    axes.axvline(100 * sigma_rel, color="tab:red", lw=1.5, label=f"here: {label}")
    if value is not None:
        axes.plot([100 * sigma_rel], [value], "o", ms=9, color="tab:red")
    axes.set_xscale("log")
    low, high = min(lengths[0], 100 * sigma_rel), max(lengths[-1], 100 * sigma_rel)
    ticks = [t for t in (0.5, 1, 2, 3, 5, 7, 10, 14, 20, 28) if low * 0.99 <= t <= high * 1.01]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks], fontsize=12)
    axes.minorticks_off()
    axes.tick_params(axis="y", labelsize=12)
    axes.set_xlabel("EMA length, % of training time", fontsize=12)
    axes.set_ylabel(curve.name, fontsize=12)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False, fontsize=10)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
