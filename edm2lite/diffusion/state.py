"""Tensors of a file as the state of a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from edm2lite.messages import one_line
from edm2lite.tensorfile import all_finite


def fill_(net: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Give a network its parameters and buffers, in float32; it may have been built on ``meta``.

    Args:
        net: The network, which takes over the tensors in place of its own.
        tensors: State dict of any floating-point type. Gains may be scalars, as in the released
            networks; here they are vectors of length 1.
        origin: Name of the file in messages.

    Raises:
        ValueError: If names or shapes differ from those of the network, or values are not finite.

    Example:
        >>> import torch
        >>> net = nn.Linear(2, 1, bias=False, device="meta")
        >>> fill_(net, {"weight": torch.tensor([[3, 4]], dtype=torch.bfloat16)}, "net.safetensors")
        >>> net.weight.tolist()
        [[3.0, 4.0]]
    """
    own = net.state_dict()
    floats = {
        k: v.float().reshape(own[k].shape if v.ndim == 0 and k in own else v.shape)
        for k, v in tensors.items()
    }
    try:
        net.load_state_dict(floats, assign=True)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise ValueError(
            f"{origin} does not fit its own model configuration: {one_line(first, 300)}"
        ) from error
    bad = [name for name, value in net.state_dict().items() if not all_finite(value)]
    if bad:
        raise ValueError(f"{origin} must hold finite weights, {bad[0]} does not; use another file")
