"""The trainer, started by ``edm2lite train``, by torchrun, or from Python.

A run is a :class:`Trainer`: the loop, with hooks that do something every so many images and sinks
that take what they report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from .config import RunConfig as RunConfig
    from .config import load_config as load_config
    from .hook import Hook as Hook
    from .sink import Sink as Sink
    from .sink import flat as flat
    from .trainer import Trainer as Trainer

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.training.config": "RunConfig load_config",
        "edm2lite.training.hook": "Hook",
        "edm2lite.training.sink": "Sink flat",
        "edm2lite.training.trainer": "Trainer",
    },
)
