"""Stopping for a signal: every process after the same step."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType

import torch

from . import distributed

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignal:
    """Within the block SIGTERM and SIGUSR1 no longer end the process: :meth:`agreed` tells of them.

    It is enough that one rank gets the signal. Ranks ask each other without waiting: the answer to
    the question of one step is read at the next, so all of them hear it at the same one. A second
    signal ends the process as usual.
    """

    def __init__(self) -> None:
        self._received = 0
        self._group = distributed.host_group()
        self._asked = torch.zeros(1, dtype=torch.int64)
        self._wait = distributed.start_max_(self._asked, None)

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
        """The name of the signal to stop for; every rank calls this after every step."""
        if self._group is None:
            answer = self._received
        else:
            self._wait()
            answer = int(self._asked)
            self._asked = torch.tensor([self._received])
            self._wait = distributed.start_max_(self._asked, self._group)
        return signal.Signals(answer).name if answer else None

    def _notice(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        signal.signal(number, self._before[signal.Signals(number)] or signal.SIG_DFL)
