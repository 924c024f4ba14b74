"""Error of emulated decays: ten averaged files against eight raw ones.

A run is given as its weights after every step. Stored are either two averages (sigma_rel 0.05 and
0.10) at five times, from the beginning of the decay to its end, tracked in float32; or the raw
weights at eight times of the decay. From either, decays are rebuilt by the calibrated solver; from
the raw files, also by the rule of warmup-stable-merge (WSM, arXiv 2507.17634): the multiplier of
the rate falls by the coefficient of a file at its time, so that a file stands for all weights since
the file before it. Truth is the decay with every step in its place, in float64. Errors are relative
to the norm of the weights, in the table also to the error of the last iterate.

Example:
  python benchmarks/decay_error.py --extra digits=digits.npy --extra lm=lm.npy
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from trajectories import TRAJECTORIES

from edm2lite.ema.decays import NamedDecay
from edm2lite.ema.formulas import decay as beta
from edm2lite.ema.merging import merging_coefficients
from edm2lite.ema.profile import PowerFunction, Step, Stored
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.solve import solve_calibrated
from edm2lite.ema.trajectory_fit import fit_trajectory

Array = NDArray[np.float64]

LENGTHS = (0.05, 0.10)
SHAPES = ("linear", "cosine", "square", "1-square", "1-sqrt")
SHARES = (0.05, 0.10, 0.15, 0.20, 0.25, 0.30, 0.40, 0.50)
MAIN = ("linear:0.25", "cosine:0.25")
AVERAGED, RAW = 5, 8  # times at which averages, and raw weights, are stored
SAMPLE = 2000  # elements that the fit may look at
FLOOR = 1e-6  # error of the float32 tracker itself


@dataclass(frozen=True)
class Cell:
    run: str
    seed: int
    decay: str
    averages: float
    predicted: float
    raw: float
    best: float
    best_predicted: float
    last: float

    @property
    def ratios(self) -> tuple[float, float]:
        """Predicted over actual error, of averages and of raw files at least squares."""
        return self.predicted / self.averages, self.best_predicted / self.best


def moments(steps: int, decay: float, count: int, first: int) -> list[int]:
    """Equally spaced steps of a decay over a share of the run, the last at its end."""
    return [round(steps * (1 - decay * (1 - k / count))) for k in range(first, count + 1)]


def tracked(weights: Array, at: set[int]) -> dict[tuple[float, int], Array]:
    """Both averages at some steps, updated in float32 as in training."""
    values = {}
    for sigma_rel in LENGTHS:
        gamma = PowerFunction.of_width(sigma_rel, 1).gamma
        average = np.zeros(weights.shape[1], np.float32)
        for step, now in enumerate(weights.astype(np.float32), start=1):
            average += np.float32(1 - beta(gamma, step, 1)) * (now - average)
            if step in at:
                values[sigma_rel, step] = average.astype(np.float64)
    return values


def off(found: Array, exact: Array) -> float:
    """Relative L2 error."""
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def cells(name: str, seed: int, weights: Array) -> Iterator[Cell]:
    """All decays of one run."""
    steps, n = weights.shape
    kept = {share: moments(steps, share, AVERAGED - 1, 0) for share in SHARES}
    stored = tracked(weights, {step for at in kept.values() for step in at})
    picked = np.random.default_rng(seed).permutation(n)[:SAMPLE]
    q = ROUNDING["float32"]
    for share in SHARES:
        keys = [(sigma_rel, step) for step in kept[share] for sigma_rel in LENGTHS]
        averages: list[Stored] = [PowerFunction.of_width(*key) for key in keys]
        raw: list[Stored] = [Step(step) for step in moments(steps, share, RAW, 1)]
        decays = [NamedDecay.parse(f"{shape}:{share:g}") for shape in SHAPES]
        targets = [d.at(steps) for d in decays]
        exact = np.stack([np.diff(t.cumulative(np.arange(steps + 1))) for t in targets]) @ weights
        results = []
        for sources, values in (
            (averages, np.stack([stored[key] for key in keys])),
            (raw, weights[[s.nimg - 1 for s in raw]].astype(np.float32).astype(np.float64)),
        ):
            updates = 0 if sources is raw else steps
            model = fit_trajectory(sources, values[:, picked], q, updates=updates)
            solution = solve_calibrated(sources, targets, model, q)
            results.append((solution.predicted_error, solution.coefficients.T @ values))
        merged = merging_coefficients(raw, targets).T @ values
        (predicted, rebuilt), (raw_predicted, best) = results
        for r, decay in enumerate(decays):
            yield Cell(
                name, seed, str(decay), off(rebuilt[r], exact[r]), float(predicted[r]),
                off(merged[r], exact[r]), off(best[r], exact[r]), float(raw_predicted[r]),
                off(weights[-1], exact[r]),
            )  # fmt: skip


def summary(found: Sequence[Cell]) -> str:
    """Errors relative to that of the last iterate, by run and decay."""
    lines = [
        "| run | decay | last iterate | raw, WSM's rule | raw, least squares | averages |"
        " WSM / averages |",
        "|---" * 7 + "|",
    ]
    for run in dict.fromkeys(c.run for c in found):
        for text in dict.fromkeys(c.decay for c in found if c.decay.endswith(":0.25")):
            own = [c for c in found if (c.run, c.decay) == (run, text)]
            last, raw, best, mine = (
                float(np.exp(np.mean([np.log(getattr(c, key)) for c in own])))
                for key in ("last", "raw", "best", "averages")
            )
            lines.append(
                f"| {run} | {text} | {last:.2e} | {raw / last:.1%} | {best / last:.1%} |"
                f" {mine / last:.2%} | {raw / mine:.1f} |"
            )
    return "\n".join(lines)


def ratios(found: Sequence[Cell]) -> str:
    """Predicted over actual error by run."""
    lines = [
        "| run | predicted / actual: 5 % | 50 % | 95 % | least | in [0.67, 1.5] |",
        "|---" * 6 + "|",
    ]
    for run in [*dict.fromkeys(c.run for c in found), "all"]:
        own = [v for c in found if run in (c.run, "all") for v in c.ratios if c.averages >= FLOOR]
        spread = " | ".join(f"{v:.2f}" for v in np.quantile(own, (0.05, 0.5, 0.95)))
        inside = np.mean([0.67 <= v <= 1.5 for v in own])
        lines.append(f"| {run} | {spread} | {min(own):.2f} | {inside:.0%} |")
    return "\n".join(lines)


def geometric(values: Array) -> float:
    """Geometric mean."""
    return float(np.exp(np.mean(np.log(values))))


def recorded(path: Path) -> Array:
    """Weights [steps, n] of a file."""
    return np.load(path).astype(np.float64)


@click.command()
@click.option("--seeds", default="0,1", show_default=True, help="Seeds of the drawn runs.")
@click.option(
    "--extra", multiple=True, metavar="NAME=FILE", help="Recorded weights [steps, n], repeatable."
)
def main(seeds: str, extra: tuple[str, ...]) -> None:
    """Rebuild decays of several runs and assert the bars."""
    started = time.perf_counter()
    found: list[Cell] = []
    for name in ("random walk", "momentum walk"):
        for seed in map(int, seeds.split(",")):
            rng = np.random.default_rng([seed, *name.encode()])
            found += cells(name, seed, TRAJECTORIES[name](rng))
    for text in extra:
        name, _, path = text.partition("=")
        found += cells(name, 0, recorded(Path(path)))
    click.echo(f"{len(LENGTHS) * AVERAGED} files of averages, {RAW} raw ones\n")
    click.echo(f"{summary(found)}\n\n{ratios(found)}\n")
    judged = [c for c in found if c.averages >= FLOOR]
    every = np.array([v for c in judged for v in c.ratios])
    inside, least = float(np.mean((every >= 0.67) & (every <= 1.5))), float(every.min())
    raw_gains = np.array([c.raw / c.best for c in found])
    gain = min(c.raw / c.averages for c in found if c.decay in MAIN)
    rows = [
        ("WSM / averages >= 20, linear and cosine over 25 %", f"{gain:.1f} at least", gain >= 20),
        ("raw: WSM / least squares >= 1", f"{raw_gains.min():.3f} at least", raw_gains.min() >= 1),
        (
            "the same >= 1.3 in the geometric mean",
            f"{geometric(raw_gains):.2f}",
            geometric(raw_gains) >= 1.3,
        ),
        ("predicted / actual in [0.67, 1.5] in 90 % of cells", f"{inside:.1%}", inside >= 0.9),
        ("predicted / actual never below 0.5", f"{least:.2f} at least", least >= 0.5),
    ]
    click.echo("| bar | measured | holds |\n|---|---|---|")
    for claim, measured, holds in rows:
        click.echo(f"| {claim} | {measured} | {'yes' if holds else 'NO'} |")
    click.echo(f"\n{len(found)} cells, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
