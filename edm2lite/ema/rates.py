"""Learning rates that a run recorded, and averages that emulate a decay from such rates.

A decay asks for a rate that falls from its value at the beginning of the decay to zero. If the run
itself did not keep its rate from there on, the multiplier is ``w = wanted / recorded``: updates
that were already small count more. The weight is ``P = 1 - w`` as before. Where w rises, the
average has negative weights; where the recorded rate is zero and the wanted one is not, there is
none.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.decays import Decay
from edm2lite.ema.profile import Profile
from edm2lite.jsonlines import read_lines

Array = NDArray[np.float64]

RECORD = "stats.jsonl"
"""Name of the file in a run that our trainer records its rates in."""

_CONSTANT = 1e-6  # relative changes of a rate below this are none
_GRID = 2000  # moments of a decay at which the multiplier is looked at
_KINKS = 100  # records within a decay up to which integrals are split at each
_END = 0.05  # of the decay that records may leave out at its end


@dataclass(frozen=True, eq=False)
class RecordedRate:
    """The learning rate over a run: straight lines between records, constant before the first.

    Attributes:
        nimg: [N] times of the records in images, increasing.
        lr: [N] rates, >= 0.
        source: Name of the file, for messages.

    Raises:
        ValueError: If there is no record, a time is not larger than the one before, or a rate is
            negative or not finite.

    Example:
        >>> rate = RecordedRate(np.array([0, 1000]), np.array([0.01, 0.0]), "stats.jsonl")
        >>> rate.at([250, 500])
        array([0.0075, 0.005 ])
    """

    nimg: Array
    lr: Array
    source: str

    def __post_init__(self) -> None:
        t, lr = np.asarray(self.nimg, np.float64), np.asarray(self.lr, np.float64)
        if not t.size or t.shape != lr.shape or not (np.diff(t) > 0).all():
            raise ValueError(f"{self.source} must hold rates at increasing image counts")
        if not (np.isfinite(t).all() and np.isfinite(lr).all() and (lr >= 0).all()):
            raise ValueError(
                f"{self.source} must hold finite rates of at least 0, found {lr.min():g} to"
                f" {lr.max():g}"
            )
        object.__setattr__(self, "nimg", t)
        object.__setattr__(self, "lr", lr)

    def at(self, t: ArrayLike) -> Array:
        """The rate after ``t`` images."""
        rate: Array = np.interp(np.asarray(t, np.float64), self.nimg, self.lr)
        return rate

    def is_constant(self, start: float, end: float) -> bool:
        """Whether the rate is the same from ``start`` to ``end`` images."""
        inside = self.nimg[(self.nimg > start) & (self.nimg < end)]
        rates = self.at([start, *inside, end])
        return bool(rates.max() - rates.min() <= _CONSTANT * rates.max())

    def __repr__(self) -> str:
        digest = xxhash.xxh3_64_hexdigest(np.stack([self.nimg, self.lr]).tobytes())
        return f"RecordedRate({len(self.nimg)} records, {digest})"


@dataclass(frozen=True)
class RateDecay:
    """The average that emulates a decay of a run whose own learning rate was not constant.

    The wanted rate is the recorded one up to the beginning of the decay, and falls from there.

    Attributes:
        decay: The decay.
        rate: The recorded rate.

    Raises:
        ValueError: If the recorded rate does not reach to the end of the decay, or is zero where
            the wanted one is not.

    Example:
        >>> from edm2lite.ema.decays import NamedDecay
        >>> rate = RecordedRate(np.array([0, 1000, 2000]), np.array([1.0, 1.0, 0.5]), "lr.csv")
        >>> profile = RateDecay(NamedDecay.parse("linear:0.5").at(2000), rate)
        >>> profile.multiplier([500, 1000, 1500, 2000]).round(3)
        array([1.   , 1.   , 0.667, 0.   ])
    """

    decay: Decay
    rate: RecordedRate

    def __post_init__(self) -> None:
        missing = self.nimg - self.rate.nimg[-1]
        if missing > _END * self.decay.width:
            raise ValueError(
                f"{self.rate.source} must record the learning rate up to the end of the decay"
                f" {self.decay}, {self.nimg} images, and ends at {self.rate.nimg[-1]:.0f}"
            )
        t = self._grid()
        wanted, recorded = self._rates(t)
        stopped = t[(recorded <= _CONSTANT * self.rate.lr.max()) & (wanted > recorded)]
        if len(stopped):
            raise ValueError(
                f"the learning rate must not be 0 within the decay {self.decay}, where updates can"
                f" be weakened and not replaced: {self.rate.source} has 0 at {stopped[0]:.0f}"
                " images; let the average end before that (--at), or pass --lr-log none to decay"
                " the course as it was"
            )

    @property
    def nimg(self) -> int:
        """End of the decay in images."""
        return self.decay.nimg

    @property
    def kinks(self) -> tuple[float, ...]:
        """Times at which the weight is not smooth, in images."""
        inside = self.rate.nimg[(self.rate.nimg > self.decay.start) & (self.rate.nimg < self.nimg)]
        if len(inside) > _KINKS:
            inside = inside[:: -(-len(inside) // _KINKS)]
        return tuple(sorted({*self.decay.kinks, *map(float, inside)}))

    def multiplier(self, t: ArrayLike) -> Array:
        """Wanted over recorded rate after ``t`` images: 1 before the decay, 0 from its end on."""
        t = np.asarray(t, np.float64)
        wanted, recorded = self._rates(t)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.where(wanted > 0, wanted / recorded, 0.0)
        return np.where(t <= self.decay.start, 1.0, np.where(t >= self.nimg, 0.0, ratio))

    def cumulative(self, t: ArrayLike) -> Array:
        """Share of the average that comes from before ``t`` images; may leave [0, 1]."""
        weight: Array = 1 - self.multiplier(t)
        return weight

    @property
    def largest_rise(self) -> float:
        """How far the multiplier rises on the way, all in all; 0 if it only falls."""
        steps = np.diff(self.multiplier(self._grid()))
        return float(steps[steps > 0].sum())

    def _grid(self) -> Array:
        return self.nimg - self.decay.width * (1 - np.arange(_GRID) / _GRID)

    def _rates(self, t: Array) -> tuple[Array, Array]:
        """Wanted and recorded rate within the decay."""
        begun = self.rate.at(self.decay.start)
        return begun * (1 - self.decay.cumulative(t)), self.rate.at(t)


def follow(decay: Decay, rate: RecordedRate | None) -> Profile:
    """The average that emulates a decay of a run with a recorded rate.

    It is the decay itself if the rate is not known, or constant from its beginning to its end.

    Args:
        decay: The decay.
        rate: The recorded rate, or None if it is not known.

    Raises:
        ValueError: As :class:`RateDecay`.

    Example:
        >>> from edm2lite.ema.decays import NamedDecay
        >>> decay = NamedDecay.parse("linear:0.5").at(2000)
        >>> rate = RecordedRate(np.array([0, 2000]), np.array([0.1, 0.1]), "lr.csv")
        >>> follow(decay, rate) is decay
        True
    """
    if rate is None or rate.is_constant(decay.start, decay.nimg):
        return decay
    first = max(int(np.searchsorted(rate.nimg, decay.start, "right")) - 1, 0)
    own = slice(first, int(np.searchsorted(rate.nimg, decay.nimg)) + 1)  # later ones add nothing
    return RateDecay(decay, RecordedRate(rate.nimg[own], rate.lr[own], rate.source))


def sign_words(profile: Profile) -> str:
    """What has to be said about the signs of an average, or "".

    Args:
        profile: An average of any kind.

    Example:
        >>> from edm2lite.ema.profile import Window
        >>> sign_words(Window(1000, 4000))
        ''
    """
    if not isinstance(profile, RateDecay) or profile.largest_rise < 1e-3:
        return ""
    return (
        f"{profile.decay}: the rate in {profile.rate.source} falls faster than this decay for a"
        f" while; the multiplier rises by {profile.largest_rise:.2g} there, so that some weights"
        " are negative"
    )


def read_rates(path: str | Path) -> RecordedRate:
    """The rates in a CSV file with columns ``nimg`` and ``lr``, or in JSON lines with these keys.

    Of several records of one time the last counts, as of a run that went back to a checkpoint.

    Args:
        path: File of either kind, told apart by the ending ``.jsonl``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a value is no number, or there is no record.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lr.csv"
        >>> _ = path.write_text("nimg,lr\\n0,0.1\\n1000,0.05\\n")
        >>> round(float(read_rates(path).at(500)), 6)
        0.075
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no learning rates at {path}; give a CSV with nimg and lr")
    found = _json_rates(path) if path.suffix == ".jsonl" else _csv_rates(path)
    if not found:
        raise ValueError(f"{path} must hold learning rates in nimg and lr, and holds none")
    return _record(found, path)


def rates_of_run(source: str | Path) -> RecordedRate | None:
    """The rates that our trainer recorded in a run, None if there are none.

    Args:
        source: The run, or its folder of snapshots.

    Raises:
        ValueError: If the records are damaged beyond single lines.

    Example:
        >>> import tempfile
        >>> rates_of_run(tempfile.mkdtemp()) is None
        True
    """
    run = Path(source)
    path = (run.parent if run.name == "snapshots" else run) / RECORD
    found = _json_rates(path) if path.is_file() else {}
    return _record(found, path) if found else None


def _record(found: dict[float, float], path: Path) -> RecordedRate:
    times = sorted(found)
    return RecordedRate(np.array(times), np.array([found[t] for t in times]), path.name)


def _json_rates(path: Path) -> dict[float, float]:
    found: dict[float, float] = {}
    for record in read_lines(path)[0]:
        values = record.get("nimg"), record.get("lr")
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            found[float(values[0])] = float(values[1])  # type: ignore[arg-type]
    return found


def _csv_rates(path: Path) -> dict[float, float]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        try:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = reader.fieldnames or ()
            if not {"nimg", "lr"} <= set(names):
                raise ValueError(
                    f"{path} must have the columns nimg and lr in its first line, found"
                    f" {', '.join(names)[:80] or 'none'}"
                )
            rows = [(row["nimg"], row["lr"]) for row in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{path} must be a CSV file in UTF-8 ({error})") from None
    found = {}
    for number, (nimg, lr) in enumerate(rows, 2):
        try:
            found[float(nimg)] = float(lr)
        except (TypeError, ValueError):
            raise ValueError(
                f"{path} must have numbers for nimg and lr, line {number} has {nimg!r}, {lr!r}"
            ) from None
    return found
