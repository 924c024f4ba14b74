"""Which parts of a training step torch.compile translates, and with which settings.

Every graph is for one shape. The micro-batches of a step are the same in every step, so that no
graph is made after the first one; images in buckets of several sizes are the exception, with graphs
for each size when it first comes. What hooks do between two steps, such as grids of samples, is not
compiled: its shapes and modes would need further graphs, while other processes wait.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

GRAPHS = 4096
"""Number of graphs that one piece of code may have: more than blocks times sizes of any run.

torch stops at 8 and runs everything further uncompiled, without an error; the blocks of a U-Net
alone have up to 40 shapes.
"""


def compile_(modules: Iterable[nn.Module]) -> None:
    """Let calls of these modules run compiled, one graph per shape.

    Args:
        modules: The modules; call them within :func:`settings`.

    Example:
        >>> net = nn.Linear(2, 2)
        >>> compile_([net])
        >>> list(net.state_dict())  # names stay
        ['weight', 'bias']
    """
    for module in modules:
        module.compile(dynamic=False)


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Settings of torch.compile for calls of compiled modules; the user's return afterwards.

    Example:
        >>> with settings():
        ...     torch._dynamo.config.recompile_limit
        4096
    """
    config: Any = torch._dynamo.config
    with config.patch(recompile_limit=GRAPHS, accumulated_recompile_limit=GRAPHS):
        yield


def uncompiled() -> contextlib.AbstractContextManager[object]:
    """A block in which compiled modules run as if they were not.

    Example:
        >>> with uncompiled():
        ...     torch.compile(lambda x: x + 1)(1)
        2
    """
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
