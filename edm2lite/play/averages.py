"""Averages of a run for somebody who tries one length after the other.

All lengths of a training time are solved at once, which takes as long as a single one; what was
rebuilt lately is kept. The folder is looked at again, so that a run may still be training.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from pathlib import Path

from edm2lite.ema import Reconstruction, list_snapshots, plan_targets
from edm2lite.ema.building import build
from edm2lite.ema.folder import snapshot_folder
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.targets import MAX_ERROR
from edm2lite.units import format_percent

LENGTHS = tuple(k / 1000 for k in range(5, 281))
"""The lengths that are offered: 0.5 % to 28 % of the training time, in steps of 0.1 %."""

_KEPT_BYTES = 2**31  # of rebuilt averages


class Averages:
    """The averages of a run, by relative width and training time.

    Args:
        run: A run, or a folder of snapshots.

    Raises:
        FileNotFoundError: If there are no snapshots.
        ValueError: If a snapshot is damaged, or they do not belong together.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> run, weights = tempfile.mkdtemp(), {"w": torch.full((3,), 50.0)}
        >>> ema = PowerFunctionEMA(weights)
        >>> for step in range(1, 9):
        ...     weights["w"] += 1
        ...     ema.update(64 * step)
        ...     _ = ema.save_snapshots(run)
        >>> averages = Averages(run)
        >>> averages.times[-1], 0.05 in averages.lengths(), averages.build(0.07).state_dict.keys()
        (512, True, dict_keys(['w']))
    """

    def __init__(self, run: str | Path):
        self.run = Path(run)
        self._seen: tuple[tuple[str, int], ...] | None = None
        self._infos: list[SnapshotInfo] = []
        self._plans: dict[int, dict[float, Reconstruction]] = {}
        self._built: OrderedDict[tuple[float, int], Reconstruction] = OrderedDict()
        self._lock = threading.RLock()  # plans are asked for while another thread rebuilds
        self.refresh()

    def refresh(self) -> bool:
        """Take in snapshots that are new; whether there were any.

        Raises:
            FileNotFoundError: If there are no snapshots any more.
            ValueError: If a snapshot is damaged, or they do not belong together.
        """
        with self._lock:
            return self._refreshed()

    @property
    def times(self) -> list[int]:
        """Training times at which averages can end, in images, ascending."""
        return sorted({info.nimg for info in self._infos})

    @property
    def clock(self) -> str:
        """What training times count: images, tokens or steps."""
        return self._infos[-1].clock

    def plans(self, nimg: int | None = None) -> dict[float, Reconstruction]:
        """Plans for all :data:`LENGTHS`, with their predicted errors.

        Args:
            nimg: End of the averages, one of :attr:`times`. [default: the latest]

        Raises:
            ValueError: If no snapshot is there.
        """
        with self._lock:
            return self._solved(self.times[-1] if nimg is None else nimg)

    def lengths(self, nimg: int | None = None) -> list[float]:
        """The lengths whose predicted error is at most 0.02, ascending.

        Args:
            nimg: End of the averages. [default: the latest snapshot]
        """
        return [s for s, p in self.plans(nimg).items() if p.predicted_error <= MAX_ERROR]

    def plan(self, sigma_rel: float, nimg: int | None = None) -> Reconstruction:
        """The plan for one average.

        Args:
            sigma_rel: Relative width; it is rounded to one of :data:`LENGTHS`.
            nimg: End of the average. [default: the latest snapshot]

        Raises:
            ValueError: If its predicted error is above 0.02, or no snapshot is there.
        """
        nearest = min(LENGTHS, key=lambda length: abs(length - sigma_rel))
        plan = self.plans(nimg)[nearest]
        if not plan.predicted_error <= MAX_ERROR:
            possible = self.lengths(nimg)
            some = (
                f"{format_percent(possible[0])} to {format_percent(possible[-1])}"
                if possible
                else "none"
            )
            raise ValueError(
                f"an average of {format_percent(nearest)} at {plan.nimg:,} {self.clock} would have"
                f" a predicted error of {plan.predicted_error:.1e}, above {MAX_ERROR:g}; lengths"
                f" that the snapshots give there: {some}"
            )
        return plan

    def build(self, sigma_rel: float, nimg: int | None = None) -> Reconstruction:
        """An average with its ``state_dict``; of those that were built lately, the same object.

        Args:
            sigma_rel: Relative width; it is rounded to one of :data:`LENGTHS`.
            nimg: End of the average. [default: the latest snapshot]

        Raises:
            ValueError: If its predicted error is above 0.02, or a snapshot is damaged.
        """
        plan = self.plan(sigma_rel, nimg)
        assert plan.sigma_rel is not None
        key = plan.sigma_rel, plan.nimg
        with self._lock:
            result = self._built.get(key)
        if result is None:
            (result,) = build([plan])
        with self._lock:
            self._built[key] = result
            self._built.move_to_end(key)
            while len(self._built) > 1 and sum(map(_num_bytes, self._built.values())) > _KEPT_BYTES:
                self._built.popitem(last=False)
        return dataclasses.replace(plan, state_dict=result.state_dict)

    def _refreshed(self) -> bool:
        paths = sorted(snapshot_folder(self.run).glob("*.safetensors"))
        seen = tuple((path.name, path.stat().st_mtime_ns) for path in paths)
        if seen == self._seen:
            return False
        known = {info.header.digest for info in self._infos}
        self._infos = list_snapshots(self.run)
        if known - {info.header.digest for info in self._infos}:  # a course that was given up
            self._built.clear()
        self._seen = seen
        self._plans.clear()
        return True

    def _solved(self, end: int) -> dict[float, Reconstruction]:
        if end not in self._plans:
            found = plan_targets(self._infos, sigma_rel=LENGTHS, nimg=end)
            self._plans[end] = {
                s: p.stored_as("float32") for s, p in zip(LENGTHS, found, strict=True)
            }
        return self._plans[end]


def _num_bytes(result: Reconstruction) -> int:
    return sum(t.numel() * t.element_size() for t in (result.state_dict or {}).values())
