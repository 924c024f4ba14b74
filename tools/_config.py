"""What commands read of a training configuration: the network and its objective.

The trainer reads configurations whole; here the other parts are passed over.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edm2lite import config_file
from edm2lite.diffusion.noise_density import LogNormal, NoiseDensity
from edm2lite.diffusion.objective import Objective
from edm2lite.diffusion.precond import PrecondConfig, upgraded_run
from edm2lite.diffusion.weighting import Weighting


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of a configuration of a run that say what is trained for."""

    net: PrecondConfig
    loss: NoiseDensity = field(default_factory=LogNormal)
    weighting: Weighting = field(default_factory=Weighting)


def objective(source: str) -> Objective:
    """The objective of a configuration: a YAML file, a run, or a shipped one.

    Raises:
        FileNotFoundError: If there is none of that name.
        ValueError: If keys or values are not known, or parts cannot go together.
    """
    parts = _read(source)
    return Objective(net=parts.net, loss=parts.loss, weighting=parts.weighting)


def network(source: str) -> PrecondConfig:
    """The network of a configuration; see :func:`objective`."""
    return _read(source).net


def _read(source: str) -> _Parts:
    return config_file.load(_Parts, source, upgrade=upgraded_run, partial=True)
