"""The ladder of EDM2 on 8x8 digits: configs A to G, three seeds each, and what has to hold of them.

    python benchmarks/ladder.py --out runs/ladder --images docs/images
    python benchmarks/ladder.py --time

Every config is trained by its preset ``ladder-small-*``, A also with the noise levels of B, so that
the objective and the network can be told apart. Each run is measured at several EMA lengths, E and
G group by group too. Then the table, the figures (``plot_ladder.py``) and the trends of magnitudes;
the exit code is 1 if one does not hold. What is finished is not done again. ``--time`` measures
training steps alone, on an idle machine.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from plot_ladder import plot_groups, plot_lengths, plot_magnitudes
from timing import seconds

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.measure import measure_denoiser
from edm2lite.ema import Exponential, reconstruct
from edm2lite.jsonlines import append_line
from edm2lite.metrics import evaluate, write_statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.magnitudes import Magnitude, read_log, to_record
from edm2lite.sampling.settings import Sampling
from edm2lite.sweep import Point, read_csv, sweep_ema
from edm2lite.training import Hook, Trainer, load_config
from edm2lite.training.sinks import keep_until

RUNGS: dict[str, tuple[str, list[str]]] = {
    "A": ("a", []),
    "A, noise of B": ("a", ["loss.P_mean=-0.4"]),
    **{letter.upper(): (letter, []) for letter in "bcdefg"},
}
SEEDS = (0, 1, 2)
LENGTHS = (0.04, 0.065, 0.1, 0.15, 0.21, 0.28)
HALF_LIFE = 50e6 / 2147.5e6
"""Half-life of the exponential average that the paper uses for A, as a share of the run."""
SAMPLING = Sampling(num_steps=8)
STUDENT = 4.303
"""Factor of a 95 % interval of the mean of three values (Student's t, 2 degrees of freedom)."""


@dataclass(kw_only=True)
class Measured(Hook):
    """Magnitudes on the same digits at the same noise levels, from before the first step on."""

    def start(self, trainer: Trainer) -> None:
        keep_until(trainer.run_dir / "measured.jsonl", trainer.nimg - 1)
        self.run(trainer)

    def run(self, trainer: Trainer) -> None:
        trainer.net.eval()
        found = measure_denoiser(trainer.net, *digits(trainer))
        trainer.net.train()
        append_line(trainer.run_dir / "measured.jsonl", to_record(trainer.nimg, found))


def digits(trainer: Trainer) -> tuple[torch.Tensor, Conditioning]:
    dataset = open_dataset("digits")
    images = torch.from_numpy(dataset.images(range(256)))
    return trainer.config.encoder.encode(images), dataset.conditioning(range(256))


class Results:
    """What was trained and measured, in a folder; whatever is missing is done when it is asked for.

    Args:
        out: The folder.
        num: Number of images per EMA length.
    """

    def __init__(self, out: Path, num: int):
        self.out, self.num = out, num
        out.mkdir(parents=True, exist_ok=True)
        self.reference = out / "reference.safetensors"
        self.weights = out / "classifier.safetensors"
        if not self.reference.is_file():
            train_classifier(self.weights)
            write_statistics("digits", self.reference, "digits", weights=self.weights)

    def run(self, rung: str, seed: int) -> Path:
        """The folder of a finished run."""
        preset, changes = RUNGS[rung]
        folder = self.out / f"{rung.replace(', ', '-').replace(' ', '-')}-{seed}"
        if not (folder / "last.safetensors").is_file():
            changes = [*changes, f"seed={seed}", "magnitudes_nimg=0"]
            config = load_config(f"ladder-small-{preset}", changes)
            click.echo(f"training {folder.name}", err=True)
            trainer = Trainer(config, folder, hooks=[Measured(every=config.snapshot_nimg)])
            trainer.train()
            if trainer.stopped_by:
                sys.exit(f"stopped by {trainer.stopped_by}; the same command continues")
        return folder

    def sweep(self, rung: str, seed: int, groups: bool = False) -> list[Point]:
        """FD at every EMA length, of all tensors or also of each group of them alone."""
        run = self.run(rung, seed)
        out = run / ("groups" if groups else "lengths")
        if not (out / "sweep.csv").is_file():
            click.echo(f"measuring {run.name} {out.name}", err=True)
            sweep_ema(
                run, LENGTHS[::2] if groups else LENGTHS, ref=self.reference, num=self.num,
                sampling=SAMPLING, batch_size=250, out=out, groups="all" if groups else (),
                weights=self.weights,
            ).write(picture=False)  # fmt: skip
        return read_csv(out / "sweep.csv")

    def exponential(self, seed: int) -> float:
        """FD of A with the average that the paper used for it."""
        run = self.run("A", seed)
        total = load_config(str(run)).total_nimg
        (made,) = reconstruct(
            run, profiles=[Exponential(HALF_LIFE * total, total)], out=run / "exponential"
        )
        options = {
            "num": self.num,
            "sampling": SAMPLING,
            "batch_size": 250,
            "weights": [self.weights],
        }
        (score,) = evaluate(made.path, self.reference, cache=run / "exponential", **options)
        return score.value


def of_length(points: Sequence[Point]) -> dict[float, float]:
    """EMA length -> FD."""
    return {p.sigma_rel: p.value for p in points if p.sigma_rel is not None and not p.group}


def table(results: Results) -> None:
    """Print a row per rung: FD at the length that is best for the mean over seeds."""
    print("| config | FD, mean of 3 seeds | 95 % interval | lowest to highest | best EMA length |")
    print("|---|---|---|---|---|")
    for rung in RUNGS:
        curves = [of_length(results.sweep(rung, seed)) for seed in SEEDS]
        best = min(LENGTHS, key=lambda s: statistics.mean(c[s] for c in curves))
        print(row(rung, [curve[best] for curve in curves], f"{100 * best:g} %"))
    exponential = [results.exponential(seed) for seed in SEEDS]
    print(row("A, exponential", exponential, f"half-life {100 * HALF_LIFE:.1f} %"))


def row(name: str, values: Sequence[float], length: str) -> str:
    mean, margin = statistics.mean(values), STUDENT * statistics.stdev(values) / len(values) ** 0.5
    span = f"{min(values):.2f} to {max(values):.2f}"
    return f"| {name} | {mean:.2f} | ± {margin:.2f} | {span} | {length} |"


def weight(layers: Sequence[Magnitude]) -> float:
    """Mean over layers of the RMS of the stored weights; norms have factors, not weights."""
    values = [m.weight for m in layers if m.weight is not None and "norm" not in m.name]
    return statistics.mean(values)


def activation(layers: Sequence[Magnitude]) -> float:
    """Mean over blocks of the magnitude of their output."""
    return statistics.mean(m.activation for m in layers if m.is_block)


def grown(weights: float, activations: float) -> tuple[bool, bool]:
    """Whether factors over three quarters of a run count as growth, of 2 % and of 10 %."""
    return weights > 1.02, activations > 1.10


TRENDS = {
    **dict.fromkeys("ABC", ("both grow", (True, True))),
    "D": ("weights alone grow", (True, False)),
    **dict.fromkeys("EFG", ("nothing grows", (False, False))),
}
"""What has to grow in each config, in words and as :func:`grown` returns it."""


def trends(results: Results) -> bool:
    """Print how magnitudes grow over training; whether every seed shows what is expected.

    Growth is counted from a quarter of the run on: before, every network finds its place.
    """
    print("\n| config | weights grow by | activations grow by | expected | holds |")
    print("|---|---|---|---|---|")
    all_hold = True
    for rung, (words, expected) in TRENDS.items():
        growth = []
        for seed in SEEDS:
            log = read_log(results.run(rung, seed) / "measured.jsonl")
            (_, first), (_, last) = log[len(log) // 4], log[-1]
            growth.append((weight(last) / weight(first), activation(last) / activation(first)))
        verdict = all(grown(*pair) == expected for pair in growth)
        all_hold &= verdict
        columns = (
            ", ".join(f"{value:.2f}" for value in values) for values in zip(*growth, strict=True)
        )
        print(f"| {rung} | {' | '.join(columns)} | {words} | {'yes' if verdict else 'NO'} |")
    return all_hold


def time_steps(rounds: int) -> None:
    """Print the median time of a training step of every rung, measured in turn."""
    with tempfile.TemporaryDirectory() as folder:
        trainers = {
            rung: Trainer(load_config(f"ladder-small-{rung}"), Path(folder) / rung)
            for rung in "abcdefg"
        }
        times: dict[str, list[float]] = {rung: [] for rung in trainers}
        for _ in range(rounds + 2):
            for rung, trainer in trainers.items():
                times[rung].append(seconds(trainer.train_step, trainer.device))
        for trainer in trainers.values():
            trainer.close()
    print("| config | ms per step of 32 images | fastest |\n|---|---|---|")
    for rung, values in times.items():
        fast, middle = 1000 * min(values[2:]), 1000 * statistics.median(values[2:])
        print(f"| {rung.upper()} | {middle:.1f} | {fast:.1f} |")


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default="runs/ladder", show_default=True)
@click.option("--num", default=300, show_default=True, help="Images per EMA length.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder for the figures.")
@click.option("--time", "only_time", is_flag=True, help="Measure the time of steps alone.")
def main(out: Path, num: int, images: Path | None, only_time: bool) -> None:
    if only_time:
        time_steps(rounds=20)
        return
    results = Results(out, num)
    for seed in SEEDS:
        for rung in RUNGS:
            results.sweep(rung, seed)
    folder = images or out
    table(results)
    holds = trends(results)
    curves = {r: [of_length(results.sweep(r, s)) for s in SEEDS] for r in RUNGS}
    plot_lengths(folder / "ladder-lengths.png", curves)
    logs = {
        f"config {r}": [read_log(results.run(r, s) / "measured.jsonl") for s in SEEDS]
        for r in TRENDS
    }
    plot_magnitudes(folder / "ladder-magnitudes.png", logs)
    groups = {r: [results.sweep(r, s, groups=True) for s in SEEDS] for r in "EG"}
    plot_groups(folder / "ladder-groups.png", groups)
    sys.exit(not holds)


if __name__ == "__main__":
    main()
