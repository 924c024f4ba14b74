"""The adaptive search against a grid of 25 lengths, and what a sweep's time goes to, on digits.

    edm2lite demo --out runs/digits
    python benchmarks/sweep.py runs/digits

For three sets of seeds: whether the search finds a length whose Fréchet distance is within the
interval of the best of the grid, and with which share of the grid's images. Then the time to
rebuild a length against the time to measure it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from edm2lite.ema import plan_targets
from edm2lite.ema.building import build
from edm2lite.metrics.frechet import FID
from edm2lite.metrics.image_source import Generation
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.sampling.settings import Sampling
from edm2lite.sweep.cells import Cell, best
from edm2lite.sweep.ledger import Ledger, Setting
from edm2lite.sweep.measure import Measurer
from edm2lite.sweep.search import rounded, search

LOW, HIGH = 0.02, 0.25


def measurer(run: Path, out: Path, steps: int, seed: int) -> Measurer:
    weights = [run / "classifier.safetensors"]
    (metric,) = FID.create(MetricInputs.of(run / "reference.safetensors", None, weights))
    generation = Generation(Sampling(num_steps=steps), first_seed=seed)
    setting = Setting(metric.record_name, "benchmark", metric.record(generation))
    return Measurer(run, metric, generation, setting, Ledger(out))


def compare(run: Path, out: Path, num: int, steps: int, seed: int) -> tuple[str, bool]:
    """A row of the table, and whether the claim holds."""
    measure = measurer(run, out, steps, seed)
    (plan,) = plan_targets(run, sigma_rel=LOW)

    def cells(lengths):
        return [Cell(length, plan.nimg) for length in lengths]

    found = search(
        lambda lengths, n: measure.joint(cells(lengths), n),
        LOW,
        HIGH,
        num,
        measure.metric.minimum_images,
    )
    winner = best(measure.points(cells(found.confirmed), num))
    grid = [rounded(s) for s in np.geomspace(LOW, HIGH, 25)]
    top = best(measure.points(cells(grid), num))
    holds = winner.value <= top.high and 3 * found.images <= 25 * num and 3 * len(found.tried) <= 25
    row = (
        f"| {seed} | {top.sigma_rel:.3f} | {top.value:.3f} ({top.low:.3f} to {top.high:.3f}) |"
        f" {winner.sigma_rel:.3f} | {winner.value:.3f} | {len(found.tried)} |"
        f" {found.images / (25 * num):.0%} | {'yes' if holds else 'no'} |"
    )
    return row, holds


def cost(run: Path, num: int, steps: int) -> tuple[str, bool]:
    """Seconds to rebuild four lengths, and to measure them; whether the first is below 5 %."""
    lengths = [0.03, 0.06, 0.12, 0.24]
    with tempfile.TemporaryDirectory() as out:
        measure = measurer(run, Path(out), steps, 0)
        (plan,) = plan_targets(run, sigma_rel=LOW)  # reads the files once: both times are warm
        begin = time.perf_counter()
        build([measure.plan(length, plan.nimg) for length in lengths])
        rebuilt = time.perf_counter() - begin
        begin = time.perf_counter()
        measure.measure([Cell(length, plan.nimg) for length in lengths], num)
        whole = time.perf_counter() - begin
    share = rebuilt / whole
    text = (
        f"Rebuilding {len(lengths)} lengths takes {rebuilt:.2f} s of {whole:.1f} s at {num} images"
        f" and {steps} steps each: {share:.1%}."
    )
    return text, share < 0.05


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--out", type=Path, help="keeps what was measured, to continue")
    args = parser.parse_args()
    print("| first seed | best of grid | FD | found | FD | lengths | images | holds |")
    print("|---|---|---|---|---|---|---|---|")
    held = []
    with tempfile.TemporaryDirectory() as scratch:
        for seed in (0, 100_000, 200_000):
            row, holds = compare(args.run, args.out or Path(scratch), args.num, args.steps, seed)
            print(row, flush=True)
            held.append(holds)
    text, cheap = cost(args.run, 1000, 16)
    print(f"\n{text}")
    sys.exit(not (all(held) and cheap))


if __name__ == "__main__":
    main()
