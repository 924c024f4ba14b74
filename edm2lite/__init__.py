"""Magnitude-preserving diffusion models (EDM2) and post-hoc EMA."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edm2lite.models import load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import edm2lite.ema.solve`` does not load torch."""
    if name == "load":
        from edm2lite.models import load

        return load
    raise AttributeError(f"module 'edm2lite' has no attribute {name!r}")
