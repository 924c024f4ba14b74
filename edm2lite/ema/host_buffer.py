"""Copies of weights in host memory, made while a GPU goes on computing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class HostBuffer:
    """Page-locked copies of tensors in host memory, filled asynchronously.

    Args:
        tensors: Tensors whose shapes and dtypes the copies have.

    Example:
        >>> buffer = HostBuffer([torch.ones(2)])
        >>> buffer.send([torch.full((2,), 5.0)])
        >>> buffer.receive()
        [tensor([5., 5.])]
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self._devices = {t.device for t in tensors if t.device.type == "cuda"}
        self._events: list[torch.cuda.Event] = []
        self._copies = [
            torch.empty(t.shape, dtype=t.dtype, pin_memory=bool(self._devices)) for t in tensors
        ]

    def send(self, tensors: Sequence[Tensor]) -> None:
        """Queue the copies behind the work of the current streams, and return at once."""
        for copy, tensor in zip(self._copies, tensors, strict=True):
            copy.copy_(tensor, non_blocking=True)
        self._events = [torch.cuda.current_stream(d).record_event() for d in self._devices]

    def receive(self) -> list[Tensor]:
        """The copies. Waits until they are complete, but for nothing that was queued later."""
        for event in self._events:
            event.synchronize()
        return self._copies
