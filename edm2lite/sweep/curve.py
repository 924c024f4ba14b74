"""The sweep that was made of a run, as a curve on which a length has its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm2lite.metrics.registry import find_metric
from edm2lite.sweep.cells import Point, read_csv
from edm2lite.sweep.ledger import LEDGER, Ledger


@dataclass(frozen=True)
class Curve:
    """A metric, or the predicted error, over the EMA length.

    Attributes:
        lengths: Relative widths, ascending.
        values: Value at each of them.
        low, high: 95 % limits of the values; empty where there are none.
        name: Name of what is measured.
        raw: Value of the raw weights, if it was measured.
        best: Index of the best value; None for a curve that says nothing of it.

    Example:
        >>> curve = Curve((0.05, 0.10, 0.20), (3.0, 1.0, 2.0), name="FD", best=1)
        >>> round(curve.at(0.15), 3), curve.at(0.25)
        (1.585, None)
    """

    lengths: tuple[float, ...]
    values: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    name: str = ""
    raw: float | None = None
    best: int | None = None

    def at(self, sigma_rel: float) -> float | None:
        """The value at a length, by straight lines over its logarithm; None beyond the ends."""
        if not self.lengths[0] <= sigma_rel <= self.lengths[-1]:
            return None
        return float(np.interp(np.log(sigma_rel), np.log(self.lengths), self.values))


def swept_curve(folder: Path, nimg: int) -> Curve | None:
    """The curve of the sweep in a folder at a training time; None if there is none.

    Guided cells, groups and decays are left out. Of several numbers of images, the largest counts.

    Args:
        folder: Folder of the sweep: the run, unless another one was given.
        nimg: Training time at which the averages ended.

    Raises:
        ValueError: If the ledger of the sweep is of another version.

    Example:
        >>> import tempfile
        >>> from edm2lite.sweep import write_csv
        >>> folder = Path(tempfile.mkdtemp())
        >>> points = [Point(s, 64, value=v, num=100) for s, v in ((None, 4), (0.1, 2), (0.2, 3))]
        >>> write_csv(folder / "sweep.csv", points)
        >>> found = swept_curve(folder, 64)
        >>> found.lengths, found.raw, found.best
        ((0.1, 0.2), 4.0, 0)
    """
    path = folder / "sweep.csv"
    if not path.is_file():
        return None
    points = [p for p in read_csv(path) if p.nimg == nimg and _is_plain(p)]
    averaged = [p for p in points if not p.is_raw]
    if not averaged:
        return None
    most = max(p.num for p in averaged)
    curve = sorted((p for p in averaged if p.num == most), key=lambda p: p.sigma_rel or 0)
    raw = [p.value for p in points if p.is_raw and p.num == most]
    first = Ledger(folder, writer=False).first if (folder / LEDGER).is_file() else None
    name, lower_is_better = _metric("" if first is None else first.metric)
    values = [p.value for p in curve]
    best = (np.argmin if lower_is_better else np.argmax)(values)
    low, high = _limits(curve)
    return Curve(
        tuple(p.sigma_rel or 0 for p in curve), tuple(values), low, high, name,
        raw[0] if raw else None, int(best),
    )  # fmt: skip


def _is_plain(point: Point) -> bool:
    return point.guidance == 1 and not point.group and not point.decay


def _limits(curve: Sequence[Point]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    low = tuple(p.low for p in curve if p.low is not None)
    high = tuple(p.high for p in curve if p.high is not None)
    return (low, high) if len(low) == len(high) == len(curve) else ((), ())


def _metric(name: str) -> tuple[str, bool]:
    """Name for people of a metric as ledgers know it, and whether low values are good."""
    try:
        kind = find_metric(name)
    except (ValueError, ImportError):  # somebody's own, or no ledger
        return name or "metric", True
    return kind.axis_label, kind.lower_is_better
