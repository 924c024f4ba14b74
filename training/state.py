"""What a checkpoint holds: everything that decides how a run goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

if TYPE_CHECKING:
    from .trainer import Trainer


def _trained(net: nn.Module) -> StateDictOptions:
    """Parameters that are not frozen; the others are those of the model that is fine-tuned."""
    is_whole = all(parameter.requires_grad for parameter in net.parameters())
    return StateDictOptions(ignore_frozen_params=True, strict=is_whole)


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The state of a run, with live tensors; every rank calls this."""
    return {
        "net": get_model_state_dict(trainer.net, options=_trained(trainer.net)),
        "optimizer": get_optimizer_state_dict(trainer.net, trainer.optimizer),
        "ema": trainer.ema.state_dict(),
        "figures": trainer.statistics.state(),  # the name is part of the format
        "nimg": trainer.nimg,
    }


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Continue from a state; every rank calls this."""
    set_model_state_dict(trainer.net, state["net"], options=_trained(trainer.net))
    set_optimizer_state_dict(trainer.net, trainer.optimizer, state["optimizer"])
    trainer.ema.load_state_dict(state["ema"])
    trainer.statistics.load(state["figures"])
    trainer.nimg = state["nimg"]
