"""Post-hoc EMA for any PyTorch model: track, save, and rebuild an average of any length later."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edm2lite.ema.profile import (
        Exponential,
        PowerFunction,
        Tabulated,
        Window,
        gamma_to_sigma_rel,
        sigma_rel_to_gamma,
    )
    from edm2lite.ema.reconstruct import Reconstruction, plan_targets, reconstruct
    from edm2lite.ema.snapshot import SnapshotInfo, list_snapshots
    from edm2lite.ema.tracker import PowerFunctionEMA

_HOME = {
    "profile": (
        "Exponential PowerFunction Tabulated Window gamma_to_sigma_rel sigma_rel_to_gamma"
    ),
    "reconstruct": "Reconstruction plan_targets reconstruct",
    "snapshot": "SnapshotInfo list_snapshots",
    "tracker": "PowerFunctionEMA",
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names.split()}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    """Import on first use, so that the solver can be used without loading torch."""
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"edm2lite.ema.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'edm2lite.ema' has no attribute {name!r}")
