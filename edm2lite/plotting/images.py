"""Rows of images with names at the edges, such as one row per EMA length."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edm2lite.image_grid import channels_last
from edm2lite.plotting.figure import new_figure, plain, save_figure

_CELL = 0.62  # inches


def plot_images(
    path: Path,
    rows: Sequence[NDArray[np.uint8]],
    row_names: Sequence[str],
    column_names: Sequence[str],
) -> None:
    """Draw each row's images side by side, with names to the left of rows and above columns.

    For pictures without names, :func:`edm2lite.image_grid.arrange` needs no matplotlib.

    Args:
        path: Name of the PNG file.
        rows: uint8 images [N, C, H, W] of each row; rows may be of different lengths.
        row_names: Name of each row.
        column_names: Names of the columns; those beyond the end of the list have none.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "images.png"
        >>> plot_images(path, [np.zeros((2, 1, 8, 8), np.uint8)], ["raw"], ["0", "1"])
        >>> path.is_file()
        True
    """
    height = len(rows)
    width = max(len(row) for row in rows)
    figure = new_figure((_CELL * width + 1.5, _CELL * height + 0.5))
    cells = figure.subplots(
        height, width, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06}
    )
    for r, row in enumerate(rows):
        for c in range(width):
            axes = cells[r][c]
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if c < len(row):
                axes.imshow(channels_last(row[c]), cmap="gray", vmin=0, vmax=255)
            if r == 0 and c < len(column_names):
                axes.set_title(plain(column_names[c]), fontsize=9)
        cells[r][0].set_ylabel(row_names[r], rotation=0, ha="right", va="center", fontsize=9)
    save_figure(path, figure)
