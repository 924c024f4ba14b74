"""Pictures of results, drawn with matplotlib; without a date in the file, so that they repeat."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edm2lite.sweep import Point, best
from edm2lite.tensorfile import replacing


def plot_sweep(path: Path, points: Sequence[Point], title: str) -> None:
    """EMA length against Fréchet distance on a log axis; the best marked, raw weights as a line."""
    curve = sorted((p for p in points if p.sigma_rel is not None), key=lambda p: p.sigma_rel or 0)
    raw = [p for p in points if p.sigma_rel is None]
    lowest = best(points)
    figure, axes = _figure()
    lengths = [100 * (p.sigma_rel or 0) for p in curve]
    axes.plot(lengths, [p.fd for p in curve], "o-", color="tab:blue", label="rebuilt averages")
    label = f"best: {100 * (lowest.sigma_rel or 0):g} %, FD {lowest.fd:.2f}"
    axes.plot(
        [100 * (lowest.sigma_rel or 0)], [lowest.fd], "*", ms=18, color="tab:red", label=label
    )
    for point in raw:
        text = f"raw last weights, FD {point.fd:.2f}"
        axes.axhline(point.fd, color="tab:gray", ls="--", label=text)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [f"{v:g}" for v in lengths])
    axes.minorticks_off()
    axes.set_xlabel("EMA length sigma_rel, % of training time")
    axes.set_ylabel("Fréchet distance")
    axes.set_title(title)
    axes.legend(frameon=False)
    axes.grid(alpha=0.25)
    _save(path, figure)


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
    figure, axes = _figure(figsize=(cell * width + 1.5, cell * height + 0.5))
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
                image = row[c].transpose(1, 2, 0)
                place.imshow(
                    image.squeeze(-1) if image.shape[2] == 1 else image,
                    cmap="gray",
                    vmin=0,
                    vmax=255,
                )
            if r == 0 and c < len(column_names):
                place.set_title(column_names[c], fontsize=9)
        grid[r][0].set_ylabel(row_names[r], rotation=0, ha="right", va="center", fontsize=9)
    _save(path, figure)


def _figure(figsize: tuple[float, float] = (7.0, 4.2)) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib; pip install 'edm2lite[metrics]'") from error
    figure = Figure(figsize=figsize, dpi=150)
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _save(path: Path, figure: Any) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    with replacing(path, "wb") as file:
        file.write(buffer.getvalue())
