"""Groups of a network's tensors, for EMA lengths of their own (the paper's Figure 5b)."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from torch import Tensor

from edm2lite.diffusion.precond import Precond
from edm2lite.models.loading import Model


def group_of(name: str, groups: Mapping[str, str]) -> str:
    """Group of a tensor; "" for those in none, as the uncertainty head, which no image depends on.

    Args:
        name: Name of the tensor in the denoiser.
        groups: Group -> regular expression, the ``groups`` of the network's configuration.

    Example:
        >>> group_of("unet.out_conv.weight", {"output": "out_"})
        'output'
    """
    return next((group for group, pattern in groups.items() if re.search(pattern, name)), "")


def mixed(rest: Model, own: Model, group: str) -> Model:
    """The model ``rest`` with the tensors of ``group`` taken from ``own``."""
    groups = rest.net.config.backbone.groups
    tensors: Mapping[str, Tensor] = {
        name: own.net.state_dict()[name] if group_of(name, groups) == group else value
        for name, value in rest.net.state_dict().items()
    }
    inputs = json.dumps([group, own.identity, rest.identity])
    metadata = {**rest.metadata, "inputs": inputs}
    name = f"{own.name} in {group}, {rest.name} elsewhere"
    net = Precond.from_tensors(tensors, metadata, name)
    return Model(name, net, rest.encoder, metadata, rest.text_encoder)
