"""Picture of docs/checkpoints.md: error of a decay by number of files, for weights that walk.

Expected errors under a random walk, relative to that of the last weights. Raw files lie at equal
steps of the decay, the last at its end; averages (sigma_rel 0.05 and 0.10) likewise.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from edm2lite.ema.decays import NamedDecay
from edm2lite.ema.planning import random_walk
from edm2lite.ema.profile import PowerFunction, Step, Stored
from edm2lite.ema.solve import predicted_error, solve_calibrated
from edm2lite.ema.solvers import solve_wsm

END, SHARE = 10_000, 0.25
COUNTS = (2, 4, 6, 8, 12, 16, 24, 32)


@click.command()
@click.argument("out", type=click.Path(path_type=Path))
def main(out: Path) -> None:
    """Write the picture to OUT."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    target, model = NamedDecay.parse(f"cosine:{SHARE}").at(END), random_walk(END, 100)
    last = predicted_error(np.ones((1, 1)), [Step(END)], [target], model, 0.0)[0]
    lines: dict[str, list[float]] = {"raw, WSM's rule": [], "raw, least squares": []}
    averages = []
    for count in COUNTS:
        times = [round(END * (1 - SHARE * (1 - k / count))) for k in range(1, count + 1)]
        raw: list[Stored] = [Step(t) for t in times]
        for name, solve in zip(lines, (solve_wsm, solve_calibrated), strict=True):
            lines[name].append(solve(raw, [target], model, 2.5e-8).predicted_error[0] / last)
        half = times[1::2]
        both: list[Stored] = [PowerFunction.of_width(s, t) for t in half for s in (0.05, 0.10)]
        averages.append(solve_calibrated(both, [target], model, 2.5e-8).predicted_error[0] / last)
    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    for (name, errors), marker in zip(lines.items(), "os", strict=True):
        axes.loglog(COUNTS, errors, marker=marker, label=name)
    axes.loglog(COUNTS, averages, marker="^", label="averages of two lengths")
    axes.set_xticks(COUNTS, [str(c) for c in COUNTS])
    axes.minorticks_off()
    axes.set_xlabel("files in the decay (cosine, last 25 % of the run)")
    axes.set_ylabel("error / that of the last weights")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=110)
    for name, errors in [*lines.items(), ("averages", averages)]:
        click.echo(f"{name}: " + ", ".join(f"{e:.2%}" for e in errors))


if __name__ == "__main__":
    main()
