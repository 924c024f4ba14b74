"""EMA length against a metric, with a ledger that makes the work resumable.

Each measured point is one JSON line in the ledger, under a key that holds everything the figure
depends on. A point whose key is there is never measured again.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edm2lite.tensorfile import replacing


@dataclass(frozen=True)
class Setting:
    """What every point of a sweep has in common.

    Attributes:
        run: Identifier of the training run.
        nimg: End of the averages in images.
        num: Images per point; seeds 0 to num - 1, the same for every length.
        num_steps: Of the sampler.
        extractor: Of the features.
        reference: Digest of the reference statistics.
    """

    run: str
    nimg: int
    num: int
    num_steps: int
    extractor: str
    reference: str


@dataclass(frozen=True)
class Point:
    """One row of the table.

    Attributes:
        sigma_rel: EMA length, or None for the raw weights.
        gamma: Its exponent, or None.
        nimg: End of the average in images.
        predicted_error: Of the rebuilt weights, 0 for the raw ones.
        fd: Fréchet distance to the reference.
        num: Images it was measured on.
    """

    sigma_rel: float | None
    gamma: float | None
    nimg: int
    predicted_error: float
    fd: float
    num: int


class Ledger:
    """The measured points of a sweep, kept in a JSON-lines file.

    Args:
        path: Made if missing; a last line that an interruption cut short is dropped.
    """

    def __init__(self, path: Path):
        self.path = path
        self._points: dict[str, Point] = {}
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        for line in lines[:-1]:  # what follows the last newline is incomplete
            entry = json.loads(line)
            point = Point(**entry["point"])
            self._points[_key(Setting(**entry["setting"]), point.sigma_rel)] = point
        if lines and lines[-1]:
            with replacing(path) as file:
                file.writelines(line + "\n" for line in lines[:-1])

    def get(self, setting: Setting, sigma_rel: float | None) -> Point | None:
        """The point, if it has been measured under this setting."""
        return self._points.get(_key(setting, sigma_rel))

    def add(self, setting: Setting, point: Point) -> None:
        """Record a point, on disk before this returns."""
        self._points[_key(setting, point.sigma_rel)] = point
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"setting": asdict(setting), "point": asdict(point)}) + "\n")


def best(points: Sequence[Point]) -> Point:
    """The averaged point of least distance.

    Raises:
        ValueError: There is none.
    """
    averaged = [point for point in points if point.sigma_rel is not None]
    if not averaged:
        raise ValueError("a sweep needs at least one EMA length")
    return min(averaged, key=lambda point: point.fd)


def write_csv(path: Path, points: Sequence[Point]) -> None:
    """One line per point; an empty sigma_rel is the raw weights."""
    rows: list[dict[str, Any]] = [asdict(point) for point in points]
    with replacing(path) as file:
        writer = csv.DictWriter(
            file, fieldnames=list(Point.__dataclass_fields__), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Point]:
    """What :func:`write_csv` wrote."""
    with open(path, encoding="utf-8", newline="") as file:
        return [
            Point(
                sigma_rel=float(row["sigma_rel"]) if row["sigma_rel"] else None,
                gamma=float(row["gamma"]) if row["gamma"] else None,
                nimg=int(row["nimg"]),
                predicted_error=float(row["predicted_error"]),
                fd=float(row["fd"]),
                num=int(row["num"]),
            )
            for row in csv.DictReader(file)
        ]


def _key(setting: Setting, sigma_rel: float | None) -> str:
    return json.dumps([asdict(setting), sigma_rel])
