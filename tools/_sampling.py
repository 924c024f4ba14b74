"""Options of the commands that sample, and the settings that they describe."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite import processes
from edm2lite.dtypes import DTYPES
from edm2lite.sampling.registry import SCHEDULES, SOLVERS

from ._cli import FLOATS, INTERVAL, SIZE, kind_option

if TYPE_CHECKING:
    from edm2lite.sampling.guidance import APG
    from edm2lite.sampling.settings import Sampling

_OPTIONS: dict[str, dict[str, Any]] = {
    "steps": {"type": click.IntRange(1), "help": "Number of solver steps. [default: 32]"},
    "solver": {
        **kind_option(SOLVERS),
        "help": "Solver; heun calls the network twice per step, the others once. [default: heun]",
    },
    "schedule": {
        **kind_option(SCHEDULES),
        "help": "Schedule of the noise levels from 80 to 0.002. [default: karras]",
    },
    "sigmas": {
        "type": FLOATS,
        "help": "Noise levels in place of --schedule and --steps, e.g. 80,20,5,1,0.2.",
    },
    "churn": {
        "type": float,
        "help": "Noise that heun adds on the way, S_churn of EDM. [default: 0]",
    },
    "guidance": {
        "type": float,
        "metavar": "W",
        "help": "Weight of the guidance away from --guide; 1 is none.",
    },
    "interval": {
        "type": INTERVAL,
        "help": "Guide between two noise levels (0.28,2.90), each moved to the nearest one of the"
        " sampler, or in steps counted from 0 (15-21, both included). [default: everywhere]",
    },
    "rescale": {
        "type": float,
        "help": "Share of the contrast that guidance adds to take back, 0 to 1. [default: 0]",
    },
    "apg": {
        "type": float,
        "metavar": "ETA",
        "help": "Project guidance: scale its part along the image by ETA, e.g. 0. [default: off]",
    },
    "apg-norm": {
        "type": float,
        "metavar": "R",
        "help": "With --apg: limit the L2 norm of the guidance of each image. [default: none]",
    },
    "apg-momentum": {
        "type": float,
        "metavar": "M",
        "help": "With --apg: momentum of the guidance over steps, e.g. -0.5. [default: 0]",
    },
    "guided-channels": {
        "type": click.IntRange(1),
        "metavar": "N",
        "help": "Guide the first N channels only, as the released DiT does. [default: all]",
    },
    "control-guidance": {
        "type": click.Choice(["both", "main"]),
        "help": "Whether the unconditional guide follows control images too, or the model alone."
        " [default: both]",
    },
    "control-weights": {
        "type": click.Choice(["equal", "resolution"]),
        "help": "Weigh control images equally at all resolutions, or more at low ones, 1, 2, 4, ..."
        " [default: equal]",
    },
    "size": {
        "type": SIZE,
        "help": "Height and width of what the network works on (pixels, or latents where there are"
        " latents), e.g. 64x96. [default: as in training]",
    },
    "dtype": {
        "type": click.Choice(DTYPES),
        "help": "Dtype in which the networks compute. [default: as the model states, but"
        " float32 for float16 on a CPU]",
    },
    "decoder-dtype": {
        "type": click.Choice(DTYPES),
        "help": "Dtype in which the autoencoder decodes latents. [default: float16 on a GPU,"
        " float32 on a CPU]",
    },
}
_FIELDS = {"steps": "num_steps", "churn": "S_churn"}  # where an option and its field differ


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options; :func:`take_sampling` takes their values."""
    for name, option in reversed(_OPTIONS.items()):
        command = click.option(f"--{name}", **option)(command)
    return command


def take_sampling(values: dict[str, Any]) -> Sampling:
    """The settings that the options describe; their values are removed from ``values``."""
    from edm2lite.sampling.settings import Sampling

    names = [name.replace("-", "_") for name in _OPTIONS]
    chosen = {n: value for n in names if (value := values.pop(n)) is not None}
    if "sigmas" in chosen and ("steps" in chosen or "schedule" in chosen):
        raise click.UsageError("--sigmas are the steps: leave out --steps and --schedule")
    guidance = _taken(chosen, "guidance", "interval", "rescale", "guided_channels")
    apg = _taken(chosen, "apg", "apg_norm", "apg_momentum")
    if "sigmas" in chosen:
        chosen["sigmas"] = tuple(chosen["sigmas"])
    plain = {_FIELDS.get(n, n): value for n, value in chosen.items()}
    if "interval" in guidance:
        guidance["interval"] = _steps(Sampling(**plain), *guidance["interval"])
    return Sampling(**plain, **guidance, apg=_apg(**apg) if apg else None)


def _taken(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values.pop(name) for name in names if name in values}


def _steps(sampling: Sampling, kind: str, low: float, high: float) -> tuple[int, int]:
    """First and last guided step, of steps or of noise levels."""
    from edm2lite.sampling.levels import interval_steps

    if kind == "steps":
        return int(low), int(high)
    levels = sampling.levels()
    first, last = interval_steps(levels, low, high)
    span = f"({levels[last + 1].item():.4g}, {levels[first].item():.4g}]"
    if processes.rank() == 0:
        click.echo(f"guided: steps {first}-{last}, noise levels {span}", err=True)
    return first, last


def _apg(apg: float | None = None, apg_norm: float = math.inf, apg_momentum: float = 0.0) -> APG:
    from edm2lite.sampling.guidance import APG

    if apg is None:
        raise click.UsageError("--apg-norm and --apg-momentum belong to --apg")
    return APG(parallel=apg, max_norm=apg_norm, momentum=apg_momentum)


def from_recipe(
    name: str, weights: Path, requested: Sampling
) -> tuple[tuple[str], str | None, Sampling]:
    """Model, guide and sampler settings of a recipe; the dtype is that of ``requested``."""
    from edm2lite.sampling.recipes import recipe
    from edm2lite.sampling.settings import Sampling

    if dataclasses.replace(requested, dtype=None) != Sampling():
        raise click.UsageError("--recipe brings its own sampling; leave out all of it but --dtype")
    found = recipe(name)
    model, guide = found.find(weights)
    sampling = dataclasses.replace(found.sampling, dtype=requested.dtype)
    return (str(model),), None if guide is None else str(guide), sampling
