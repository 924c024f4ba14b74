"""Copies of a training state in host memory, so that it can be written while training goes on."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from . import distributed


class HostCopies:
    """Makes copies in host memory. Every rank creates one of these, at the same point."""

    def __init__(self) -> None:
        self._mesh: DeviceMesh | None = None
        if distributed.is_group():
            self._mesh = init_device_mesh("cpu", (distributed.world_size(),))

    def of(self, value: Any) -> Any:
        """A copy of nested dicts and lists of tensors and plain values.

        Shards remain shards, on a device mesh of CPUs: a shard on a mesh of GPUs cannot be in host
        memory.
        """
        if isinstance(value, dict):
            return {key: self.of(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.of(item) for item in value]
        if isinstance(value, DTensor):
            return DTensor.from_local(
                value.to_local().detach().to("cpu", copy=True),
                self._mesh,
                value.placements,
                run_check=False,
                shape=value.shape,
                stride=value.stride(),
            )
        if isinstance(value, Tensor):
            return value.detach().to("cpu", copy=True)
        return copy.deepcopy(value)
