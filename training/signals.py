"""Stopping for a signal: all processes stop after the same step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch

from . import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Within the block SIGTERM and SIGUSR1 do not end the process; :meth:`agreed` reports them.

    It is enough that one rank gets the signal. Ranks exchange what they got without waiting: the
    exchange that begins after one step is read after the next, so that all ranks learn of the
    signal at the same step. A second signal ends the process as usual.
    """

    def __init__(self) -> None:
        self._received = 0
        self._group = distributed.host_group()
        self._exchanged = torch.zeros(1, dtype=torch.int64)
        self._wait = distributed.start_max_(self._exchanged, None)

    def __enter__(self) -> StopSignal:
        self._before = {s: signal.signal(s, self._notice) for s in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if kind is None:
            self._wait()

    def agreed(self) -> str | None:
        """The name of the signal to stop for, or None; every rank calls this after every step."""
        if self._group is None:
            number = self._received
        else:
            self._wait()
            number = int(self._exchanged)
            self._exchanged = torch.tensor([self._received])
            self._wait = distributed.start_max_(self._exchanged, self._group)
        return signal.Signals(number).name if number else None

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, self._before[signal.Signals(number)] or signal.SIG_DFL)
