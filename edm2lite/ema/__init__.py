"""Post-hoc EMA for any PyTorch model: track, save, and rebuild an average of any length later."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edm2lite.ema.lengths import Length
    from edm2lite.ema.profile import (
        Exponential,
        PowerFunction,
        Tabulated,
        Window,
        gamma_to_sigma_rel,
        sigma_rel_to_gamma,
    )
    from edm2lite.ema.reconstruction import reconstruct
    from edm2lite.ema.snapshot import SnapshotInfo, list_snapshots
    from edm2lite.ema.targets import Reconstruction, plan_targets
    from edm2lite.ema.tracker import PowerFunctionEMA

__all__ = [
    "Exponential",
    "Length",
    "PowerFunction",
    "PowerFunctionEMA",
    "Reconstruction",
    "SnapshotInfo",
    "Tabulated",
    "Window",
    "gamma_to_sigma_rel",
    "list_snapshots",
    "plan_targets",
    "reconstruct",
    "sigma_rel_to_gamma",
]

_HOME = {
    "Length": "lengths",
    "PowerFunctionEMA": "tracker",
    "Reconstruction": "targets",
    "SnapshotInfo": "snapshot",
    "list_snapshots": "snapshot",
    "plan_targets": "targets",
    "reconstruct": "reconstruction",
}


def __getattr__(name: str) -> Any:
    """Import on first use, so that the profiles and solvers can be used without loading torch."""
    if name not in __all__:
        raise AttributeError(f"module 'edm2lite.ema' has no attribute {name!r}")
    module = importlib.import_module(f"edm2lite.ema.{_HOME.get(name, 'profile')}")
    return getattr(module, name)
