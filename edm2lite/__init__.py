"""Magnitude-preserving diffusion models (EDM2) and post-hoc EMA.

What scripts and notebooks need is here by name::

    model = edm2lite.load("runs/digits@sigma_rel=0.13")
    images = edm2lite.generate(model, range(8), classes=[3, 5])
    images.grid().save("images.png")

Everything is imported on first use, so that ``import edm2lite`` loads nothing. The rooms behind
it are ``edm2lite.ema``, ``network``, ``diffusion``, ``sampling``, ``metrics``, ``sweep``,
``dataset``, ``models`` and ``training``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edm2lite.lazy import exports
from edm2lite.version import __version__ as __version__

if TYPE_CHECKING:
    from edm2lite.dataset import open_dataset as open_dataset
    from edm2lite.diffusion.objective import DenoisingLoss as DenoisingLoss
    from edm2lite.diffusion.precond import Precond as Precond
    from edm2lite.diffusion.precond import PrecondConfig as PrecondConfig
    from edm2lite.ema import PowerFunctionEMA as PowerFunctionEMA
    from edm2lite.ema import reconstruct as reconstruct
    from edm2lite.metrics import evaluate as evaluate
    from edm2lite.models.hub import from_pretrained as from_pretrained
    from edm2lite.models.hub import save_pretrained as save_pretrained
    from edm2lite.models.loading import load as load
    from edm2lite.network.conditioning import Conditioning as Conditioning
    from edm2lite.network.layers import normalize_weights_ as normalize_weights_
    from edm2lite.network.unet import UNetConfig as UNetConfig
    from edm2lite.sampling import Images as Images
    from edm2lite.sampling import generate as generate
    from edm2lite.sampling.settings import Sampling as Sampling
    from edm2lite.sweep import sweep_ema as sweep_ema

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "edm2lite.dataset": "open_dataset",
        "edm2lite.diffusion.objective": "DenoisingLoss",
        "edm2lite.diffusion.precond": "Precond PrecondConfig",
        "edm2lite.ema": "PowerFunctionEMA reconstruct",
        "edm2lite.metrics": "evaluate",
        "edm2lite.models.hub": "from_pretrained save_pretrained",
        "edm2lite.models.loading": "load",
        "edm2lite.network.conditioning": "Conditioning",
        "edm2lite.network.layers": "normalize_weights_",
        "edm2lite.network.unet": "UNetConfig",
        "edm2lite.sampling": "Images generate",
        "edm2lite.sampling.settings": "Sampling",
        "edm2lite.sweep": "sweep sweep_ema",
    },
)
