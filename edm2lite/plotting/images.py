"""Rows of images with names at the edges, such as one row per EMA length."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edm2lite.image_grid import channels_last
from edm2lite.messages import one_line
from edm2lite.plotting.figure import new_figure, plain, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CELL, _WIDE_CELL, _BELOW = 0.62, 1.0, 0.45  # inches
_SHORT, _SHOWN = 6, 15  # characters


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
        column_names: Names of the columns, such as prompts; those beyond the end of the list have
            none.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "images.png"
        >>> plot_images(path, [np.zeros((2, 1, 8, 8), np.uint8)], ["raw"], ["0", "1"])
        >>> path.is_file()
        True
    """
    height, width = len(rows), max(len(row) for row in rows)
    names = [wrapped(name) for name in column_names]
    is_long = any(len(name) > _SHORT for name in column_names)
    cell = _WIDE_CELL if is_long else _CELL
    figure = new_figure((cell * width + 1.5, cell * height + 0.5))
    cells = figure.subplots(
        height, width, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06}
    )
    for r, row in enumerate(rows):
        for c in range(width):
            _show(cells[r][c], row[c] if c < len(row) else None)
            if r == 0 and c < len(names):
                cells[r][c].set_title(names[c], fontsize=7 if is_long else 9)
        cells[r][0].set_ylabel(row_names[r], rotation=0, ha="right", va="center", fontsize=9)
    _save(path, figure)


def plot_captioned(
    path: Path, images: Sequence[NDArray[np.uint8]], captions: Sequence[str], columns: int
) -> None:
    """Draw images row by row, each with its caption below.

    Args:
        path: Name of the PNG file.
        images: uint8 images [C, H, W].
        captions: Caption of each image; of a long one, the beginning is shown.
        columns: Number of images in a row.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "images.png"
        >>> plot_captioned(path, [np.zeros((3, 8, 8), np.uint8)], ["a black square"], columns=1)
        >>> path.is_file()
        True
    """
    rows = -(-len(images) // columns)
    figure = new_figure((_WIDE_CELL * columns + 0.2, (_WIDE_CELL + _BELOW) * rows + 0.2))
    space = {"wspace": 0.06, "hspace": _BELOW / _WIDE_CELL}
    cells = figure.subplots(rows, columns, squeeze=False, gridspec_kw=space).flat
    for i, axes in enumerate(cells):
        _show(axes, images[i] if i < len(images) else None)
        if i < len(images):
            axes.set_xlabel(wrapped(captions[i]), fontsize=7, labelpad=2)
    _save(path, figure)


def wrapped(text: str) -> str:
    """A caption as a picture shows it: at most three lines of fifteen characters.

    Example:
        >>> print(wrapped("a grinning face with big eyes and a very wide smile"))
        a grinning face
        with big eyes
        and a very...
    """
    lines = textwrap.wrap(one_line(text), _SHOWN, max_lines=3, placeholder="...")
    return plain("\n".join(lines))


def _show(axes: Axes, image: NDArray[np.uint8] | None) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if image is not None:
        axes.imshow(channels_last(image), cmap="gray", vmin=0, vmax=255)


def _save(path: Path, figure: Figure) -> None:
    with warnings.catch_warnings():  # a font that lacks a character shows a box
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        warnings.filterwarnings("ignore", r"Matplotlib currently does not support", UserWarning)
        save_figure(path, figure)
