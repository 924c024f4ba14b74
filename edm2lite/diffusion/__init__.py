"""Denoisers and how they are trained: preconditioning, noise levels, weightings, the loss."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports

if TYPE_CHECKING:
    from edm2lite.diffusion.objective import DenoisingLoss as DenoisingLoss
    from edm2lite.diffusion.precond import Precond as Precond
    from edm2lite.diffusion.precond import PrecondConfig as PrecondConfig

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.diffusion.objective": "DenoisingLoss",
        "edm2lite.diffusion.precond": "Precond PrecondConfig",
    },
)
