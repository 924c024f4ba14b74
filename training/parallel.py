"""How processes share the network: a whole copy each (DDP), or a part of everything (FSDP2)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from edm2lite.diffusion.objective import DenoisingLoss, LossTerms
from edm2lite.diffusion.precond import Precond
from edm2lite.dtypes import torch_dtype
from edm2lite.ema.shards import local_shard
from edm2lite.network.kernels.step_weights import StepWeights
from edm2lite.network.layers import MPConv, mp_layers

from . import distributed
from .compilation import compile_, settings, uncompiled
from .config import RunConfig
from .data import LossInputs


class ParallelLoss:
    """The loss of a network that all processes train together.

    Every process must have built ``net`` with the same weights. Afterwards ``net`` is on
    ``device``; under ``parallel: fsdp`` its weights are shards (DTensor), by rows, and so are its
    gradients and the state of its optimizer. A single process has the whole network either way.

    Attributes:
        module: The loss, wrapped as the processes need it.
        is_sharded: Whether weights are shards.
        is_compiled: Whether the loss, or every block of a sharded network, is compiled.
        weights: The weights that a compiled loss computes with; None where it takes those of the
            network.

    Args:
        net: The denoiser, on the CPU.
        config: Configuration of the run; ``weighting``, ``parallel`` and ``compile`` matter here.
        device: Device of this process.
    """

    def __init__(self, net: Precond, config: RunConfig, device: torch.device):
        self.net = net
        self.is_sharded = config.parallel == "fsdp" and distributed.is_group()
        blocks = net.backbone.blocks()
        self.is_compiled = config.compile
        self.module: nn.Module = DenoisingLoss(net, config.weighting)
        self.weights: StepWeights[Precond] | None = None
        if self.is_sharded:
            if config.compile:
                compile_(blocks or [net.backbone])
            self._shard([*blocks, net], device)
            return
        net.to(device)
        if config.compile:
            # a layer of a user's that computes something else stays as it is
            layers = [layer for layer in mp_layers(net) if type(layer).forward is MPConv.forward]
            self.weights = StepWeights(net, layers, torch_dtype(net.config.dtype))
            self.module = DenoisingLoss(self.weights.net, config.weighting)
            compile_([self.module, self.weights.normalized])
        elif distributed.is_group():
            self.module = _replicated(self.module, device)

    def __call__(self, inputs: LossInputs) -> LossTerms:
        """The loss of each sample, see :class:`edm2lite.diffusion.objective.DenoisingLoss`."""
        with settings() if self.is_compiled else contextlib.nullcontext():
            terms: LossTerms = self.module(*inputs)
        return terms

    def between_steps(self) -> contextlib.AbstractContextManager[object]:
        """A block in which the network does something else than training, without new graphs."""
        is_in_graphs = self.is_sharded and self.is_compiled  # else the loss alone is
        return uncompiled() if is_in_graphs else contextlib.nullcontext()

    @contextlib.contextmanager
    def accumulating(self, is_first: bool, is_last: bool) -> Iterator[None]:
        """A forward and a backward pass, one of several whose gradients are added.

        Args:
            is_first: Whether it is the first of a step, before which weights have changed.
            is_last: Whether it is the last, after which gradients are averaged over ranks.
        """
        if self.weights is not None:
            with settings():
                if is_first:
                    self.weights.refresh()
                yield
                self.weights.collect(is_first)
                if is_last:
                    distributed.mean_(self.weights.sums)
                    self.weights.project()
        elif is_last:
            yield
        elif isinstance(self.module, DistributedDataParallel):
            with self.module.no_sync():
                yield
        elif self.is_sharded:
            net: Any = self.net
            net.set_requires_gradient_sync(False)
            yield
            net.set_requires_gradient_sync(True)
        else:
            yield

    def square_norm(self, grads: list[Tensor]) -> Tensor:
        """Sum of squares of the elements of whole gradients, float64; not finite if one is not.

        Args:
            grads: Gradients of all parameters, as this process holds them.
        """
        parts = torch.stack(torch._foreach_norm([local_shard(g) for g in grads]))
        total = parts.double().square().sum()
        return distributed.sum_(total) if self.is_sharded else total

    def _shard(self, modules: list[nn.Module], device: torch.device) -> None:
        check_fsdp(torch.__version__)
        mesh = init_device_mesh(device.type, (distributed.world_size(),))
        for module in modules:
            fully_shard(module, mesh=mesh)
        net: Any = self.net
        net.logvar = partial(_no_view, net.logvar)
        register_fsdp_forward_method(net, "logvar")


def check_fsdp(version: str) -> None:
    """Refuse versions of torch whose FSDP2 was tried and fails.

    Seen on a CPU: 2.6 does not run it; 2.7 and 2.8 give parameters of fewer rows than processes, as
    the gains are, gradients of about 0. 2.9 gives the gradients of a single process.

    Args:
        version: Version of torch.

    Raises:
        ValueError: If the version is older than 2.9.
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
