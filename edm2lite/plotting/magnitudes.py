"""Magnitudes of activations and weights along a network and over training.

The measurements are those of :mod:`edm2lite.network.magnitudes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edm2lite.network.magnitudes import Magnitude, by_bucket
from edm2lite.plotting.figure import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_magnitudes(
    path: Path, layers: Sequence[Magnitude], log: Sequence[tuple[int, Sequence[Magnitude]]]
) -> None:
    """Draw magnitudes along the network and, where a run has logged them, over training.

    Args:
        path: Name of the PNG file.
        layers: Measurements in the order of the network.
        log: (Images seen, measurements) of the run; may be empty.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> layers = [
        ...     Magnitude("enc.block0", "8x8", expected=1.0, activation=0.98, largest=1.31),
        ...     Magnitude("dec.block0", "8x8", expected=1.0, activation=1.02, largest=1.27),
        ... ]
        >>> path = Path(tempfile.mkdtemp()) / "magnitudes.png"
        >>> plot_magnitudes(path, layers, log=[])
        >>> path.is_file()
        True
    """
    panels = 3 if log else 1
    figure = new_figure((9.0, 3.4 * panels))
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    figure.subplots_adjust(hspace=0.42)
    _plot_along(axes[0], layers)
    if log:
        _plot_over_training(axes[1], axes[2], log)
    save_figure(path, figure)


def _plot_along(axes: Axes, layers: Sequence[Magnitude]) -> None:
    """One point per layer in the order of the network, resolutions named below."""
    shown = [m for m in layers if m.resolution]
    blocks = [i for i, m in enumerate(shown) if m.is_block]
    convolutions = [i for i, m in enumerate(shown) if not m.is_block and m.expected > 0]
    relative = [shown[i].activation / shown[i].expected for i in convolutions]
    axes.plot(convolutions, relative, ".", color="tab:gray", ms=4, label="convolutions / gain")
    axes.plot(blocks, [shown[i].activation for i in blocks], "o-", ms=4, label="blocks")
    axes.plot(blocks, [shown[i].largest for i in blocks], "v:", ms=3, label="their largest feature")
    weights = [shown[i].weight or np.nan for i in convolutions]
    axes.plot(convolutions, weights, "_", color="tab:green", label="stored weights")
    starts = [i for i, m in enumerate(shown) if not i or m.bucket != shown[i - 1].bucket]
    axes.set_xticks(starts, [shown[i].bucket for i in starts], rotation=40, ha="right", fontsize=7)
    axes.axhline(1, color="black", lw=0.8)
    axes.set_yscale("log", base=2)
    axes.set_ylabel("magnitude (RMS)")
    axes.set_title("Magnitudes along the network")
    axes.legend(frameon=False, fontsize=8, ncols=4)
    axes.grid(alpha=0.25)


def _plot_over_training(
    activations: Axes, updates: Axes, log: Sequence[tuple[int, Sequence[Magnitude]]]
) -> None:
    nimg = [when / 1000 for when, _ in log]
    buckets = [by_bucket(layers) for _, layers in log]
    for name in buckets[0]:
        style = "--" if name.startswith("dec") else "-"
        means = [bucket[name]["mean"] if name in bucket else np.nan for bucket in buckets]
        activations.plot(nimg, means, style, marker=".", label=name)
    activations.axhline(1, color="black", lw=0.8)
    activations.set_yscale("log", base=2)
    activations.set_ylabel("activations of blocks")
    activations.set_title("Over training")
    activations.legend(frameon=False, fontsize=8, ncols=4)
    moved = [[m.update for m in layers if m.update is not None] for _, layers in log]
    quantiles = np.array([np.quantile(u, [0, 0.5, 1]) if u else [np.nan] * 3 for u in moved])
    updates.fill_between(nimg, quantiles[:, 0], quantiles[:, 2], alpha=0.25, label="all layers")
    updates.plot(nimg, quantiles[:, 1], marker=".", label="median layer")
    updates.set_yscale("log")
    updates.set_ylabel("relative update per step")
    updates.set_xlabel("thousand images seen")
    updates.legend(frameon=False, fontsize=8)
    for axes in (activations, updates):
        axes.grid(alpha=0.25)
