"""Stopping for a signal: all processes stop after the same step."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType, TracebackType

import torch

from . import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

TWICE = 2.0
"""Seconds within which a signal that comes again is one that was sent twice."""

_AFTER_CTRL_C = b"\ninterrupted: this step ends, with a checkpoint; Ctrl-C again stops at once\n"


class StopSignal:
    """Within the block the first of :data:`SIGNALS` does not end the process, but is reported.

    :meth:`agreed` reports it. SIGINT, from Ctrl-C, is left alone in a process that ignores it, as
    shells start their background jobs.

    It is enough that one rank gets the signal. Ranks exchange what they got without waiting: the
    exchange that begins after one step is read after the next, so that all ranks learn of the
    signal at the same step. The same signal again ends the process as usual; but within
    :data:`TWICE` of the first one, unless it is SIGINT, it is taken for the same: ``timeout`` and
    schedulers signal a process, and its group right after it.
    """

    def __init__(self) -> None:
        self._received = 0
        self._at: dict[int, float] = {}
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
        now = time.monotonic()
        if number in self._at:
            if now - self._at[number] > TWICE:
                self._restore(number)
                signal.raise_signal(number)
            return
        self._at[number], self._received = now, number
        if number == signal.SIGINT:
            self._restore(number)
            if distributed.rank() == 0:  # print may be what was interrupted, and not be reentered
                os.write(2, _AFTER_CTRL_C)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._before[signal.Signals(number)] or signal.SIG_DFL)
