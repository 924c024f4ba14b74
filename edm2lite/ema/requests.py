"""Averages as people ask for them, by width, exponent, decay or profile, and their names."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edm2lite.ema.decays import Decay, NamedDecay
from edm2lite.ema.profile import PowerFunction, Profile
from edm2lite.ema.rates import (
    RateDecay,
    RecordedRate,
    follow,
    rates_of_run,
    read_rates,
    sign_words,
)

logger = logging.getLogger(__name__)

Log = str | Path | RecordedRate | None
"""Where learning rates are: a file, "none", rates as such, or None for those that a run has."""


@dataclass(frozen=True)
class Request:
    """An average that is asked for, and by which name.

    Attributes:
        profile: The average.
        sigma_rel: EMA length as it was requested, if the average is a power function.
        decay: Name of the decay that the average emulates, "" if it was not asked for as one.

    Example:
        >>> Request(PowerFunction.of_width(0.1, 1000), 0.1).name
        '0.1'
    """

    profile: Profile
    sigma_rel: float | None = None
    decay: str = ""

    @property
    def name(self) -> str:
        """What messages call the average."""
        if self.sigma_rel is not None:
            return f"{self.sigma_rel:.6g}"
        return self.decay or str(self.profile)


def requests_for(
    source: object,
    latest: int,
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    profiles: Profile | Sequence[Profile] | None = None,
    decay: str | Sequence[str] | None = None,
    lr_log: Log = None,
    nimg: int | None = None,
) -> list[Request]:
    """Averages of a run by the one of four forms that is given; warns of negative weights.

    Args:
        source: The run, a folder of snapshots, or a list of snapshots.
        latest: End of the latest snapshot in images.
        sigma_rel: EMA lengths, each in (0, 0.2887).
        gamma: Exponents >= 0.
        profiles: Averages of any shape.
        decay: Names of decays, such as ``cosine:0.2``.
        lr_log: Learning rates, see :data:`Log`.
        nimg: End of the averages in images. [default: ``latest``]

    Raises:
        FileNotFoundError: If there is no file of learning rates.
        ValueError: If several forms are given, an average is out of range, or a decay cannot be
            met.

    Example:
        >>> [request.decay for request in requests_for([], 1000, decay=["linear:20%"])]
        ['linear:0.2']
    """
    if sum(form is not None for form in (sigma_rel, gamma, profiles, decay)) != 1:
        raise ValueError("give the averages as one of sigma_rel, gamma, profiles and decay")
    if profiles is not None:
        if nimg is not None:
            raise ValueError("profiles determine their own end; leave nimg out")
        return requests_of(profiles if isinstance(profiles, Sequence) else [profiles])
    rate = None if decay is None else recorded_rate(source, lr_log)
    end = latest if nimg is None else nimg
    found = requests_at(end, sigma_rel=sigma_rel, gamma=gamma, decay=decay, rate=rate)
    for words in filter(None, (sign_words(request.profile) for request in found)):
        logger.warning("%s", words)
    return found


def requests_at(
    end: int,
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    decay: str | Sequence[str] | None = None,
    rate: RecordedRate | None = None,
) -> list[Request]:
    """Averages that end at a time, by the one of three forms that is given.

    Args:
        end: End of the averages in images.
        sigma_rel: EMA lengths, each in (0, 0.2887).
        gamma: Exponents >= 0.
        decay: Names of decays, such as ``cosine:0.2``.
        rate: Learning rate that the run recorded, for decays; None for a constant one.

    Raises:
        ValueError: If an average is out of range, or a decay cannot be met.

    Example:
        >>> [request.decay for request in requests_at(1000, decay=["linear:20%", "1-s^2:250"])]
        ['linear:0.2', '1-square:250']
    """
    if sigma_rel is not None:
        widths = [float(s) for s in np.atleast_1d(np.asarray(sigma_rel))]
        return [Request(PowerFunction.of_width(s, end), s) for s in widths]
    if decay is not None:
        names = [decay] if isinstance(decay, str) else decay
        decays = [NamedDecay.parse(name) for name in names]
        return [Request(follow(one.at(end), rate), None, str(one)) for one in decays]
    powers = [PowerFunction(float(g), end) for g in np.atleast_1d(np.asarray(gamma))]
    return [Request(power, power.sigma_rel) for power in powers]


def requests_of(profiles: Sequence[Profile]) -> list[Request]:
    """Averages that are given as profiles.

    Args:
        profiles: Averages of any shape.

    Example:
        >>> requests_of([PowerFunction(0.0, 1000)])[0].sigma_rel
        0.28867513459481287
    """
    found = []
    for profile in profiles:
        width = profile.sigma_rel if isinstance(profile, PowerFunction) else None
        decay = profile.decay if isinstance(profile, RateDecay) else profile
        found.append(Request(profile, width, str(decay) if isinstance(decay, Decay) else ""))
    return found


def check_solver(solver: str, solvers: Collection[str], requests: Sequence[Request]) -> None:
    """Refuse an unknown solver, and one that compares profiles for those it cannot compare.

    Args:
        solver: Name of the solver.
        solvers: Names of all solvers.
        requests: The averages.

    Raises:
        ValueError: If there is no such solver, or it is ``paper`` and the square of a decay has no
            integral.

    Example:
        >>> check_solver("paper", ["paper"], requests_at(1000, decay="cosine:0.2"))
    """
    if solver not in solvers:
        raise ValueError(f"solver must be one of {', '.join(solvers)}, got {solver!r}")
    for name in (request.decay for request in requests if request.decay):
        if solver == "paper" and not NamedDecay.parse(name).shape.has_square:
            raise ValueError(
                f"the solver must be calibrated for {name}, got paper: it compares the squares of"
                " profiles, and that of this one has no integral"
            )


def recorded_rate(source: object, log: Log) -> RecordedRate | None:
    """The learning rate that decays of a run are measured against, None for a constant one.

    Args:
        source: The run or folder of snapshots; of a list of snapshots nothing is known.
        log: CSV or JSON lines with ``nimg`` and ``lr``, rates as such, "none" for a constant rate,
            or None for what the run recorded itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file does not hold rates.

    Example:
        >>> recorded_rate([], None) is None
        True
    """
    if isinstance(log, RecordedRate):
        return log
    if log is None:
        return rates_of_run(source) if isinstance(source, str | Path) else None
    return None if str(log) == "none" else read_rates(log)
