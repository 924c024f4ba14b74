"""Magnitude-preserving diffusion models (EDM2) and post-hoc EMA."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports
from edm2lite.version import __version__ as __version__

if TYPE_CHECKING:
    from edm2lite.models.loading import load as load

__getattr__, __dir__, __all__ = exports(__name__, {"edm2lite.models.loading": "load"})
