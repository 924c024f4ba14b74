"""Whether our written derivatives and packed kernels may stand in for torch's own operations."""

from __future__ import annotations

import torch


def is_plain_autograd() -> bool:
    """No torch.compile, no torch.func transform and no forward mode is looking on.

    These see through operations and need torch's own. Backward passes, also of backward passes, and
    no derivatives at all are plain.
    """
    return (
        not torch.compiler.is_compiling()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )
