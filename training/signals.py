"""Stopping for a signal: all processes stop after the same step."""

from __future__ import annotations

import os
import signal
from types import FrameType, TracebackType

import torch

from . import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_AFTER_CTRL_C = b"\ninterrupted: this step ends, with a checkpoint; Ctrl-C again stops at once\n"


class StopSignal:
    """Within the block the first of :data:`SIGNALS` does not end the process, but is reported.

    :meth:`agreed` reports it. SIGINT, from Ctrl-C, is left alone in a process that ignores it, as
    shells start their background jobs.

    It is enough that one rank gets the signal. Ranks exchange what they got without waiting: the
    exchange that begins after one step is read after the next, so that all ranks learn of the
    signal at the same step. The same signal again ends the process as usual.
    """

    def __init__(self) -> None:
        self._received = 0
        self._group = distributed.host_group()
        self._exchanged = torch.zeros(1, dtype=torch.int64)
        self._wait = distributed.start_max_(self._exchanged, None)

    def __enter__(self) -> StopSignal:
        ignores = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        numbers = [s for s in SIGNALS if not (ignores and s == signal.SIGINT)]
        self._before = {s: signal.signal(s, self._notice) for s in numbers}
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
        if number == signal.SIGINT and distributed.rank() == 0:
            os.write(2, _AFTER_CTRL_C)  # print may be what was interrupted, and cannot be reentered
