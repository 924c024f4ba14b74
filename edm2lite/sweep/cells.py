"""What a sweep measures, and the rows of its table."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edm2lite.atomic import replacing


@dataclass(frozen=True)
class Cell:
    """One setting among those that a sweep compares.

    Attributes:
        sigma_rel: EMA length, None for the raw weights and for decays.
        nimg: End of the average in images.
        guidance: Weight of guidance, 1 for none.
        guide_sigma_rel: EMA length of the guide, or None if it is not swept.
        group: Group of tensors that alone has ``sigma_rel``, or "" for all tensors.
        rest_sigma_rel: EMA length of the tensors outside the group.
        decay: Decay of the learning rate that the average emulates, or "".

    Example:
        >>> Cell(0.1, 64000, guidance=1.5).group
        ''
    """

    sigma_rel: float | None
    nimg: int
    guidance: float = 1.0
    guide_sigma_rel: float | None = None
    group: str = ""
    rest_sigma_rel: float | None = None
    decay: str = ""

    @property
    def is_raw(self) -> bool:
        """Whether the cell is of the raw weights, and not of an average."""
        return self.sigma_rel is None and not self.decay

    @property
    def settings(self) -> dict[str, Any]:
        """The fields that identify a measurement; ``decay`` only where there is one."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(Cell)}
        return fields if self.decay else {k: v for k, v in fields.items() if k != "decay"}


AXES = {
    "sigma_rel": "EMA length",
    "decay": "decay",
    "nimg": "training images",
    "guidance": "guidance weight",
    "guide_sigma_rel": "EMA length of the guide",
    "group": "group",
}
"""Fields of a cell that may vary within a sweep, and their names for people."""


@dataclass(frozen=True)
class Point(Cell):
    """One row of the table.

    Attributes:
        gamma: Exponent of the average, None for the raw weights.
        predicted_error: Predicted error of the rebuilt weights, 0 for the raw ones.
        value: Value of the metric.
        low, high: 95 % interval of the value, None if the metric has none.
        num: Number of images that it was measured on.

    Example:
        >>> point = Point(0.1, 1024, value=2.5, low=2.25, high=2.75, num=300)
        >>> point.cell == Cell(0.1, 1024)
        True
    """

    gamma: float | None = None
    predicted_error: float = 0.0
    value: float = 0.0
    low: float | None = None
    high: float | None = None
    num: int = 0

    @property
    def cell(self) -> Cell:
        """The setting that was measured."""
        return Cell(**self.settings)


def best(points: Sequence[Point], lower_is_better: bool = True) -> Point:
    """The point of the best value among those of the most images; it may be that of raw weights.

    Args:
        points: Points of one metric.
        lower_is_better: Whether the best value is the lowest.

    Raises:
        ValueError: If there are no points.

    Example:
        >>> points = [Point(None, 1024, value=1.5), Point(0.2, 1024, value=2.0)]
        >>> best(points).sigma_rel is None
        True
    """
    if not points:
        raise ValueError("a sweep needs at least one EMA length")
    most = max(point.num for point in points)
    choose = min if lower_is_better else max
    return choose((p for p in points if p.num == most), key=lambda point: point.value)


def best_average(points: Sequence[Point], lower_is_better: bool = True) -> Point:
    """The averaged point of the best value among those of the most images.

    Args:
        points: Points of one metric.
        lower_is_better: Whether the best value is the lowest.

    Raises:
        ValueError: If there is no averaged point.

    Example:
        >>> points = [Point(None, 1024, value=1.5), Point(0.2, 1024, value=2.0)]
        >>> best_average(points).sigma_rel
        0.2
    """
    return best([point for point in points if not point.is_raw], lower_is_better)


def varying(points: Sequence[Cell]) -> list[str]:
    """The axes along which the averaged points differ; sigma_rel or decay always and first.

    Example:
        >>> varying([Cell(0.1, 1024), Cell(0.1, 2048)])
        ['sigma_rel', 'nimg']
        >>> varying([Cell(None, 1024, decay="linear:0.2")])
        ['decay']
    """
    averaged = [p for p in points if not p.is_raw]
    first = "decay" if any(p.decay for p in averaged) else "sigma_rel"
    others = [a for a in AXES if a != first and len({getattr(p, a) for p in averaged}) > 1]
    return [first, *others]


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """Write one line per point; an empty sigma_rel stands for the raw weights, or a decay.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sweep.csv"
        >>> write_csv(path, [])
        >>> path.read_text().split(",")[:2]
        ['sigma_rel', 'nimg']
    """
    rows: list[dict[str, Any]] = [dataclasses.asdict(point) for point in points]
    names = [f.name for f in dataclasses.fields(Point) if f.name != "decay"]
    if any(point.decay for point in points):
        names.insert(1, "decay")
    with replacing(path) as file:
        writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Point]:
    """The points that :func:`write_csv` wrote.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "sweep.csv"
        ...     write_csv(path, [Point(0.1, 1024, value=2.5, num=300)])
        ...     read_csv(path)[0].value
        2.5
    """
    optional = ("sigma_rel", "guide_sigma_rel", "rest_sigma_rel", "gamma", "low", "high")
    with open(path, encoding="utf-8", newline="") as file:
        points = []
        for row in csv.DictReader(file):
            values: dict[str, Any] = {}
            for name, text in row.items():
                if name in optional:
                    values[name] = float(text) if text else None
                elif name in ("nimg", "num"):
                    values[name] = int(text)
                else:
                    values[name] = text if name in ("group", "decay") else float(text)
            points.append(Point(**values))
    return points
