"""Options of the commands that sample, and what they mean."""

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
    "steps": {"type": click.IntRange(1), "help": "Steps of the sampler. [default: 32]"},
    "solver": {
        **kind_option(SOLVERS),
        "help": "Solver; heun calls the network twice per step, the others once. [default: heun]",
    },
    "schedule": {
        **kind_option(SCHEDULES),
        "help": "Schedule of the noise levels from 80 to 0.002. [default: karras]",
    },
    "sigmas": {"type": FLOATS, "help": "The noise levels themselves, e.g. 80,20,5,1,0.2."},
    "churn": {"type": float, "help": "S_churn, noise that heun adds. [default: 0]"},
    "guidance": {"type": float, "metavar": "W", "help": "Weight of --guide; 1 is no guidance."},
    "interval": {
        "type": INTERVAL,
        "help": "Guide between two noise levels (0.28,2.90), each moved to the nearest one of the"
        " sampler, or in steps counted from 0 (15-21, both included). [default: everywhere]",
    },
    "rescale": {"type": float, "help": "Guidance rescale, 0 to 1, e.g. 0.7. [default: 0]"},
    "apg": {"type": float, "metavar": "ETA", "help": "Projected guidance, e.g. 0. [default: off]"},
    "apg-norm": {"type": float, "metavar": "R", "help": "Limit of its difference. [default: none]"},
    "apg-momentum": {
        "type": float,
        "metavar": "M",
        "help": "Its momentum, e.g. -0.5.",
    },
    "size": {
        "type": SIZE,
        "help": "Of what the network works on (latents, not pixels, where there are latents), e.g."
        " 64x96. [default: as in training]",
    },
    "dtype": {
        "type": click.Choice(DTYPES),
        "help": "Dtype in which the networks compute. [default: as the model says]",
    },
}
_FIELDS = {"steps": "num_steps", "churn": "S_churn"}  # where an option and its field differ


def sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options; :func:`take_sampling` takes their values."""
    for name, option in reversed(_OPTIONS.items()):
        command = click.option(f"--{name}", **option)(command)
    return command


def take_sampling(values: dict[str, Any]) -> Sampling:
    """What the options ask for; they are removed from ``values``."""
    from edm2lite.sampling.settings import Sampling

    names = [name.replace("-", "_") for name in _OPTIONS]
    given = {n: value for n in names if (value := values.pop(n)) is not None}
    if "sigmas" in given and ("steps" in given or "schedule" in given):
        raise click.UsageError("--sigmas are the steps: leave out --steps and --schedule")
    guidance: dict[str, Any] = {
        n: given.pop(n) for n in ("guidance", "interval", "rescale") if n in given
    }
    apg = {n: given.pop(n) for n in ("apg", "apg_norm", "apg_momentum") if n in given}
    if "sigmas" in given:
        given["sigmas"] = tuple(given["sigmas"])
    plain: dict[str, Any] = {_FIELDS.get(n, n): value for n, value in given.items()}
    if "interval" in guidance:
        guidance["interval"] = _steps(Sampling(**plain), *guidance["interval"])
    return Sampling(**plain, **guidance, apg=_apg(**apg) if apg else None)


def _taken(given: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: given.pop(name) for name in names if name in given}


def _steps(sampling: Sampling, kind: str, low: float, high: float) -> tuple[int, int]:
    from edm2lite.sampling.guidance import interval_steps

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
    name: str, weights: Path, asked: Sampling
) -> tuple[tuple[str], str | None, Sampling]:
    """Model, guide and sampling of a recipe; how to compute is ``asked`` for."""
    from edm2lite.sampling.recipes import recipe
    from edm2lite.sampling.settings import Sampling

    if dataclasses.replace(asked, dtype=None) != Sampling():
        raise click.UsageError("--recipe brings its own sampling; leave out all of it but --dtype")
    found = recipe(name)
    model, guide = found.find(weights)
    sampling = dataclasses.replace(found.sampling, dtype=asked.dtype)
    return (str(model),), None if guide is None else str(guide), sampling
