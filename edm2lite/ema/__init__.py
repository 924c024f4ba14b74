"""Post-hoc EMA for any PyTorch model: track, save, and rebuild an average of any length later.

Importing this package loads nothing; each name is imported on first use, so that profiles and
solvers can be used without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.ema.decays import Decay as Decay
    from edm2lite.ema.decays import NamedDecay as NamedDecay
    from edm2lite.ema.folder import list_snapshots as list_snapshots
    from edm2lite.ema.formulas import gamma_to_sigma_rel as gamma_to_sigma_rel
    from edm2lite.ema.formulas import sigma_rel_to_gamma as sigma_rel_to_gamma
    from edm2lite.ema.lengths import Length as Length
    from edm2lite.ema.profile import Exponential as Exponential
    from edm2lite.ema.profile import PowerFunction as PowerFunction
    from edm2lite.ema.profile import Tabulated as Tabulated
    from edm2lite.ema.profile import Window as Window
    from edm2lite.ema.reconstruction import reconstruct as reconstruct
    from edm2lite.ema.reconstruction import reconstruct_each as reconstruct_each
    from edm2lite.ema.result import Reconstruction as Reconstruction
    from edm2lite.ema.snapshot import SnapshotInfo as SnapshotInfo
    from edm2lite.ema.targets import plan_targets as plan_targets
    from edm2lite.ema.tracker import PowerFunctionEMA as PowerFunctionEMA

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.ema.decays": "Decay NamedDecay",
        "edm2lite.ema.folder": "list_snapshots",
        "edm2lite.ema.formulas": "gamma_to_sigma_rel sigma_rel_to_gamma",
        "edm2lite.ema.lengths": "Length",
        "edm2lite.ema.profile": "Exponential PowerFunction Tabulated Window",
        "edm2lite.ema.reconstruction": "reconstruct reconstruct_each",
        "edm2lite.ema.result": "Reconstruction",
        "edm2lite.ema.snapshot": "SnapshotInfo",
        "edm2lite.ema.targets": "plan_targets",
        "edm2lite.ema.tracker": "PowerFunctionEMA",
    },
)
