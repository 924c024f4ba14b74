"""An empty figure to draw in, and the PNG file that it becomes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from edm2lite.atomic import replacing
from edm2lite.extras import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(size: tuple[float, float] = (7.0, 4.2), *, dpi: int = 150) -> Figure:
    """An empty matplotlib figure that needs no display.

    Args:
        size: Width and height in inches.
        dpi: Pixels per inch.

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> figure = new_figure((4, 3))
        >>> _ = figure.add_subplot().plot([0, 1], [0, 1])
        >>> figure.get_size_inches().tolist()
        [4.0, 3.0]
    """
    require("matplotlib")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=dpi)
    FigureCanvasAgg(figure)
    return figure


def plain(text: str) -> str:
    """A name for a picture as it stands: matplotlib takes what is between dollars for a formula.

    Example:
        >>> print(plain("costs $5 to $7"))
        costs \\$5 to \\$7
    """
    return text.replace("$", r"\$")


def save_figure(path: Path, figure: Figure, *, crop: bool = True) -> None:
    """Write a figure as PNG, atomically and without a date.

    Args:
        path: Name of the PNG file.
        figure: The finished figure.
        crop: Whether the picture is cut, or widened, to what is drawn.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty.png"
        >>> save_figure(path, new_figure((1, 1)), crop=False)
        >>> path.read_bytes()[:4]
        b'\\x89PNG'
    """
    buffer = io.BytesIO()
    figure.savefig(
        buffer, format="png", bbox_inches="tight" if crop else None, metadata={"Software": None}
    )
    with replacing(path, "wb") as file:
        file.write(buffer.getvalue())
