"""How processes share the network: a whole copy each (DDP), or a part of everything (FSDP2)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond
from edm2lite.diffusion.weighting import Weighting
from edm2lite.ema.shards import local_shard

from . import distributed


class Shared:
    """The loss module of a network that all processes train together.

    Every process must have built ``net`` with the same weights. Afterwards ``net`` is on
    ``device``; under ``fsdp`` its weights are shards (DTensor), by rows, and so are its gradients
    and the state of its optimizer.

    Attributes:
        loss: Call it like :class:`edm2lite.diffusion.objective.DenoisingLoss`.
        is_sharded: Whether weights are shards.

    Args:
        net: The denoiser, on the CPU.
        weighting: Of noise levels in the loss.
        mode: ``ddp`` or ``fsdp``; neither does anything to a single process.
        compiled: Whether torch.compile translates the U-Net.
        device: Where to train.
    """

    def __init__(
        self,
        net: Precond,
        weighting: Weighting,
        mode: Literal["ddp", "fsdp"],
        compiled: bool,
        device: torch.device,
    ):
        self.net = net
        self.is_sharded = mode == "fsdp" and distributed.is_group()
        if compiled:
            for module in net.backbone.blocks() if self.is_sharded else [net.backbone]:
                module.compile()
        self.loss: nn.Module = DenoisingLoss(net, weighting)
        if self.is_sharded:
            self._shard(device)
            return
        net.to(device)
        if distributed.is_group():
            self.loss = _replicated(self.loss, device)

    @contextlib.contextmanager
    def gradients_kept(self) -> Iterator[None]:
        """Backward passes within the block add up gradients without averaging them over ranks."""
        if isinstance(self.loss, DistributedDataParallel):
            with self.loss.no_sync():
                yield
        elif self.is_sharded:
            net: Any = self.net
            net.set_requires_gradient_sync(False)
            yield
            net.set_requires_gradient_sync(True)
        else:
            yield

    def square_norm(self, grads: list[Tensor]) -> Tensor:
        """Sum of squares of the elements of whole gradients, float64; NaN or inf if any of them is.

        Args:
            grads: Of all parameters, as this process has them.
        """
        parts = torch.stack(torch._foreach_norm([local_shard(g) for g in grads]))
        total = parts.double().square().sum()
        return distributed.sum_(total) if self.is_sharded else total

    def _shard(self, device: torch.device) -> None:
        check_fsdp(torch.__version__)
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for module in (*self.net.backbone.blocks(), self.net):
            fully_shard(module, mesh=mesh)
        net: Any = self.net
        net.logvar = partial(_no_view, net.logvar)
        register_fsdp_forward_method(net, "logvar")


def check_fsdp(version: str) -> None:
    """Refuse FSDP2 of a torch that was tried and fails.

    Seen on a CPU: 2.6 does not run it; 2.7 and 2.8 give parameters of fewer rows than processes, as
    the gains are, gradients of about 0. 2.9 gives those of one process.

    Raises:
        ValueError: The version is one of these.
    """
    major, minor = (int(number) for number in version.split(".")[:2])
    if (major, minor) < (2, 9):
        raise ValueError(
            f"parallel=fsdp needs torch 2.9 or newer, whose FSDP2 gives small parameters their"
            f" gradients, got {version}; update torch, or use parallel=ddp"
        )


def _replicated(loss: nn.Module, device: torch.device) -> nn.Module:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        return DistributedDataParallel(
            loss,
            device_ids=[device.index] if device.type == "cuda" else None,
            broadcast_buffers=False,  # ours are constants; newer versions spell it otherwise
            gradient_as_bucket_view=True,  # or there would be two copies of every gradient
        )


def _no_view(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The result, as a tensor of its own: FSDP2 warns of views, which hide from its hooks."""
    return function(x).clone()
