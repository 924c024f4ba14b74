"""EMA length (x guidance, x guide, x training time) against a metric, with intervals."""

from __future__ import annotations

from edm2lite.sweep.cells import Cell, Point, best, read_csv, write_csv

__all__ = ["Cell", "Point", "best", "read_csv", "write_csv"]
