"""The network and the objective of a training configuration, as the commands need them.

Only the trainer reads the other parts; they are ignored here.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from edm2lite import config_file
from edm2lite.diffusion.format1 import upgraded_run
from edm2lite.diffusion.noise_density import LogNormal, NoiseDensity
from edm2lite.diffusion.objective import Objective
from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.diffusion.weighting import Weighting


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """The parts of a training configuration that define the objective."""

    net: PrecondConfig
    loss: NoiseDensity = field(default_factory=LogNormal)
    weighting: Weighting = field(default_factory=Weighting)


def objective(source: str) -> Objective:
    """The training objective of a configuration.

    Args:
        source: A YAML file, the folder of a run, or the name of a shipped configuration.

    Raises:
        FileNotFoundError: If there is no such configuration.
        ValueError: If a key or value is invalid, or the parts cannot be combined.
    """
    parts = _read(source)
    return Objective(net=parts.net, loss=parts.loss, weighting=parts.weighting)


def network(source: str) -> PrecondConfig:
    """The network of a configuration. ``source`` is that of :func:`objective`."""
    return _read(source).net


def _read(source: str) -> _Parts:
    return config_file.load(_Parts, source, upgrade=upgraded_run, partial=True)
