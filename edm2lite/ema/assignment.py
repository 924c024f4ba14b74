"""Writes tensors into a module, whatever the module is wrapped in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from edm2lite.ema.model_tensors import named_tensors
from edm2lite.ema.shards import distributed_like, local_shard


@torch.no_grad()
def assign(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module in place; nothing changes if one of them does not fit.

    The names are those of the model itself: prefixes that DDP, FSDP2, torch.compile and
    checkpointing add to the names in ``module`` are left out. Values are converted to the types and
    moved to the devices that the module has; of a sharded tensor each process takes its part.

    Args:
        module: The module, wrapped or not.
        tensors: All entries of the state dict of the model.

    Raises:
        ValueError: If names or shapes differ.

    Example:
        >>> wrapped = nn.ModuleDict({"module": nn.Linear(2, 1, bias=False)})
        >>> assign(wrapped, {"weight": torch.tensor([[3.0, 4.0]])})
        >>> wrapped["module"].weight.tolist()
        [[3.0, 4.0]]
    """
    live = named_tensors(module)
    missing, unknown = sorted(live.keys() - tensors), sorted(tensors.keys() - live)
    if missing or unknown:
        raise ValueError(
            f"{type(module).__name__} must be the model whose weights were averaged; it also has"
            f" {missing[:3] or 'nothing'} and lacks {unknown[:3] or 'nothing'}; build the module as"
            " in training"
        )
    for name, tensor in live.items():
        if tensor.shape != tensors[name].shape:
            raise ValueError(
                f"{name} must have the shape {list(tensors[name].shape)} of the average, in"
                f" {type(module).__name__} it has {list(tensor.shape)}; build the module as in"
                " training"
            )
    for name, tensor in live.items():
        mine = local_shard(distributed_like(tensors[name], tensor.detach()))
        local_shard(tensor.detach()).copy_(mine)
