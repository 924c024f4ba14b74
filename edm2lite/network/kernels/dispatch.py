"""When operations with derivatives and kernels of our own may stand in for those of torch."""

from __future__ import annotations

import torch
from torch import Tensor


def own_kernels_allowed() -> bool:
    """Whether torch executes each operation as it is called.

    This holds for ordinary backward passes, for backward passes of backward passes, and without
    gradients. It does not hold within torch.compile, transforms of torch.func and forward-mode
    differentiation: they look into a function and need operations that they know.

    Example:
        >>> own_kernels_allowed()
        True
        >>> torch.func.vmap(lambda x: x * own_kernels_allowed())(torch.ones(3))
        tensor([0., 0., 0.])
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def is_readable(values: Tensor) -> bool:
    """Whether a look at the values is free: it would stall a GPU, and break a graph or a vmap.

    Example:
        >>> is_readable(torch.ones(3)), is_readable(torch.ones(3, device="meta"))
        (True, False)
    """
    return (
        values.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    )
