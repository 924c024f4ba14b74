"""What guidance does to samples in the plane, a panel for each kind of guidance."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.plotting.figure import new_figure, save_figure
from edm2lite.toy.density import Mixture
from edm2lite.toy.experiment import log_density, score

_MARGIN = 0.16  # around the branches, in units of the data
_ON, _OFF = "#e8710a", "#1f4e9c"  # orange and blue

Box = tuple[float, float, float, float]  # left, right, bottom, top


def plot_guidance(
    path: Path, classes: tuple[Mixture, Mixture], points: Mapping[str, Tensor], limit: float
) -> None:
    """Draw samples of the first class over gray areas in which the two densities are high.

    Samples where the density of the first class is below ``limit`` are blue, the others orange.

    Args:
        path: Name of the PNG file.
        classes: Densities of the two classes.
        points: Title of a panel -> its samples [N, 2].
        limit: Log density that separates samples on the data from those off it, see
            :func:`edm2lite.toy.experiment.threshold`.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    box = _box(classes)
    panels = {}
    for name, x in points.items():
        result, off = score(classes[0], x, limit), log_density(classes[0], x) < limit
        title = f"{name}\n{100 * result.off:.1f} % off, {100 * result.covered:.0f} % covered"
        panels[title] = (x[~off].numpy(), x[off].numpy())
    _plot_points(path, _background(classes, limit, box), box, panels)


def _box(classes: tuple[Mixture, Mixture]) -> Box:
    mean = torch.cat([mixture.mean for mixture in classes])
    low, high = (mean.min(0).values - _MARGIN).tolist(), (mean.max(0).values + _MARGIN).tolist()
    return low[0], high[0], low[1], high[1]


def _background(classes: tuple[Mixture, Mixture], limit: float, box: Box) -> NDArray[np.float64]:
    """[320, 400], lowest row first: 0 is white; the second class is lighter than the first."""
    grid_x, grid_y = np.meshgrid(np.linspace(*box[:2], 400), np.linspace(*box[2:], 320))
    grid = torch.from_numpy(np.stack([grid_x.ravel(), grid_y.ravel()], 1))
    first, second = ((log_density(m, grid) >= limit).reshape(grid_x.shape) for m in classes)
    shade: NDArray[np.float64] = torch.maximum(0.14 * first, 0.07 * second).double().numpy()
    return shade


def _plot_points(
    path: Path,
    background: NDArray[np.float64],
    box: Box,
    panels: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
) -> None:
    width, height = box[1] - box[0], box[3] - box[2]
    figure = new_figure((3.3 * len(panels), 3.3 * height / width + 0.45))
    places = figure.subplots(1, len(panels), squeeze=False, gridspec_kw={"wspace": 0.03})[0]
    for axes, (title, points) in zip(places, panels.items(), strict=True):
        axes.imshow(1 - background, extent=box, origin="lower", cmap="gray", vmin=0, vmax=1)
        for xy, color in zip(points, (_ON, _OFF), strict=True):
            axes.scatter(xy[:, 0], xy[:, 1], s=1.3, lw=0, color=color)
        axes.set(xlim=box[:2], ylim=box[2:], xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=10)
    save_figure(path, figure)
