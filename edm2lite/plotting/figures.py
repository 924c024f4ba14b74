"""Pictures of results, drawn with matplotlib; without a date in the file, so that they repeat."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.atomic import replacing
from edm2lite.image_grid import channels_last
from edm2lite.network.magnitudes import Magnitude, by_bucket


def image_grid(
    path: Path,
    rows: Sequence[NDArray[np.uint8]],
    row_names: Sequence[str],
    column_names: Sequence[str],
) -> None:
    """Images [columns, C, H, W] of each row side by side, with names at the edges."""
    height = len(rows)
    width = max(len(row) for row in rows)
    cell = 0.62
    figure, axes = new_figure(figsize=(cell * width + 1.5, cell * height + 0.5))
    axes.remove()
    grid = figure.subplots(
        height, width, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06}
    )
    for r, row in enumerate(rows):
        for c in range(width):
            place = grid[r][c]
            place.set(xticks=[], yticks=[])
            place.spines[:].set_visible(False)
            if c < len(row):
                place.imshow(channels_last(row[c]), cmap="gray", vmin=0, vmax=255)
            if r == 0 and c < len(column_names):
                place.set_title(column_names[c], fontsize=9)
        grid[r][0].set_ylabel(row_names[r], rotation=0, ha="right", va="center", fontsize=9)
    save_figure(path, figure)


def plot_magnitudes(
    path: Path, layers: Sequence[Magnitude], log: Sequence[tuple[int, Sequence[Magnitude]]]
) -> None:
    """Magnitudes along the network, and over training where a run has logged them."""
    panels = 3 if log else 1
    figure, first = new_figure(figsize=(9.0, 3.4 * panels))
    first.remove()
    axes = figure.subplots(panels, 1, squeeze=False)[:, 0]
    figure.subplots_adjust(hspace=0.42)
    _plot_along(axes[0], layers)
    if log:
        _plot_over_training(axes[1], axes[2], log)
    save_figure(path, figure)


def _plot_along(axes: Any, layers: Sequence[Magnitude]) -> None:
    """One point per layer in the order of the network, resolutions named below."""
    shown = [m for m in layers if m.resolution]
    blocks = [i for i, m in enumerate(shown) if m.is_block]
    convolutions = [i for i, m in enumerate(shown) if not m.is_block and m.expected > 0]
    relative = [shown[i].activation / shown[i].expected for i in convolutions]
    axes.plot(convolutions, relative, ".", color="tab:gray", ms=4, label="convolutions / gain")
    axes.plot(blocks, [shown[i].activation for i in blocks], "o-", ms=4, label="blocks")
    axes.plot(blocks, [shown[i].largest for i in blocks], "v:", ms=3, label="their largest feature")
    weights = [shown[i].weight for i in convolutions]
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
    activations: Any, updates: Any, log: Sequence[tuple[int, Sequence[Magnitude]]]
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


def plot_points(
    path: Path,
    background: NDArray[np.float64],
    box: tuple[float, float, float, float],
    panels: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    """Points in the plane, a panel per title, those that matter in blue over those in orange.

    Args:
        path: Of the PNG.
        background: [H, W] of 0 (white) to 1, lowest row first.
        box: Left, right, bottom and top of every panel.
        panels: Title -> orange points [N, 2], blue points [M, 2].
    """
    width, height = box[1] - box[0], box[3] - box[2]
    figure, first = new_figure(figsize=(3.3 * len(panels), 3.3 * height / width + 0.45))
    first.remove()
    places = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.03})[0]
    for place, (title, points) in zip(places, panels.items(), strict=True):
        place.imshow(1 - background, extent=box, origin="lower", cmap="gray", vmin=0, vmax=1)
        for xy, color in zip(points, ("#e8710a", "#1f4e9c"), strict=True):
            place.scatter(xy[:, 0], xy[:, 1], s=1.3, lw=0, color=color)
        place.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
        place.spines[:].set_visible(False)
        place.set_title(title, fontsize=10)
    save_figure(path, figure)


def new_figure(figsize: tuple[float, float] = (7.0, 4.2)) -> tuple[Any, Any]:
    """An empty figure of that size in inches, and its axes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; pip install 'edm2lite[metrics]'") from error
    figure = Figure(figsize=figsize, dpi=150)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def save_figure(path: Path, figure: Any) -> None:
    """Write a PNG, atomically."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    with replacing(path, "wb") as file:
        file.write(buffer.getvalue())
