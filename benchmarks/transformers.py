"""The U-Net of config G, DiT and MP-DiT on 8x8 digits at equal cost per step and equal steps.

    python benchmarks/transformers.py --out runs/transformers --images docs/images

Networks are those of the presets digits, digits-dit and digits-mp-dit, trained for 768 steps of 32
images. Every run is measured at several EMA lengths. Then MP-DiT with one part exchanged at a time
(``mp_dit_variants.py``), one seed; the tables, the figures, and samples. The exit code is 1 if
MP-DiT's FD is above 1.25 times that of the U-Net, or a block of it leaves [0.7, 1.4]. What is
finished is not done again. About 50 minutes on one core.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import click
import mp_dit_variants as mp_dit_variants  # the kind of network in files of the ablation
import numpy as np
from ladder import SEEDS, Measured, of_length, row
from plot_ladder import plot_lengths

from edm2lite.metrics import write_statistics
from edm2lite.metrics.digits_classifier import train_classifier
from edm2lite.network.flops import count_macs
from edm2lite.network.magnitudes import by_bucket, read_log
from edm2lite.plotting.figure import new_figure, save_figure
from edm2lite.plotting.images import plot_images
from edm2lite.sampling.generation import generate
from edm2lite.sampling.settings import Sampling
from edm2lite.sweep import Point, read_csv, sweep_ema
from edm2lite.training import Trainer, load_config

NETWORKS = {"G (U-Net)": "digits", "DiT": "digits-dit", "MP-DiT": "digits-mp-dit"}
PARTS = ("rotation", "fixed share", "fixed angle", "no norm")
VARIANT = "mp_dit_variants:VariantConfig"
LENGTHS = (0.025, 0.04, 0.07, 0.12)
SAMPLING = Sampling(num_steps=8)
CHANGES = [
    "batch_size=32", "microbatch=32", "total_nimg=24Ki", "status_nimg=3Ki", "snapshot_nimg=1Ki",
    "checkpoint_nimg=3Ki", "optim.ref_batches=300", "optim.rampup_nimg=1024",
]  # fmt: skip


class Results:
    """What was trained and measured, in a folder; whatever is missing is done when it is asked for.

    Args:
        out: The folder.
        num: Number of images per EMA length.
        changes: Further changes of the configurations.
    """

    def __init__(self, out: Path, num: int, changes: list[str]):
        self.out, self.num, self.changes = out, num, changes
        out.mkdir(parents=True, exist_ok=True)
        self.reference = out / "reference.safetensors"
        self.weights = out / "classifier.safetensors"
        if not self.reference.is_file():
            train_classifier(self.weights)
            write_statistics("digits", self.reference, "digits", weights=self.weights)

    def run(self, name: str, seed: int) -> Path:
        """The folder of a finished run: of a network, or of MP-DiT with another part."""
        preset, changes = NETWORKS.get(name, NETWORKS["MP-DiT"]), [f"seed={seed}"]
        if name in PARTS:
            changes += [f"net.backbone.kind={VARIANT}", f"net.backbone.part={name}"]
        folder = self.out / f"{preset}-{name.replace(' ', '-')}-{seed}"
        if not (folder / "last.safetensors").is_file():
            config = load_config(preset, [*CHANGES, *changes, *self.changes])
            click.echo(f"training {folder.name}", err=True)
            trainer = Trainer(config, folder, hooks=[Measured(every=config.status_nimg)])
            trainer.train()
            if trainer.stopped_by:
                sys.exit(f"stopped by {trainer.stopped_by}; the same command continues")
        return folder

    def sweep(self, name: str, seed: int) -> list[Point]:
        """FD at every EMA length."""
        run = self.run(name, seed)
        found = run / "lengths" / "sweep.csv"
        measured = {p.sigma_rel for p in read_csv(found)} if found.is_file() else set()
        if not measured >= set(LENGTHS):
            click.echo(f"measuring {run.name}", err=True)
            sweep_ema(
                run, LENGTHS, ref=self.reference, num=self.num, sampling=SAMPLING, batch_size=250,
                out=run / "lengths", weights=self.weights,
            ).write(picture=False)  # fmt: skip
        return read_csv(found)


def table(results: Results) -> bool:
    """Print a row per network at its best length; whether MP-DiT is within 1.25 times the U-Net."""
    print("| network | FD, mean of 3 seeds | 95 % interval | lowest to highest | best EMA length |")
    print("|---|---|---|---|---|")
    means = {}
    for name in NETWORKS:
        curves = [of_length(results.sweep(name, seed)) for seed in SEEDS]
        best = min(LENGTHS, key=lambda s: statistics.mean(c[s] for c in curves))
        values = [curve[best] for curve in curves]
        means[name] = statistics.mean(values)
        print(row(name, values, f"{100 * best:g} %"))
    return means["MP-DiT"] <= 1.25 * means["G (U-Net)"]


def ablation(results: Results) -> None:
    """Print FD at the best length of MP-DiT with each part exchanged, of one seed."""
    print("\n| MP-DiT, seed 0 | FD | 95 % interval | EMA length | blocks at the end |")
    print("|---|---|---|---|---|")
    for name in ("MP-DiT", *PARTS):
        points = [p for p in results.sweep(name, SEEDS[0]) if p.sigma_rel is not None]
        best = min(points, key=lambda p: p.value)
        blocks = block_magnitudes(results, name)[-1][1]
        print(
            f"| {'as it is' if name == 'MP-DiT' else name} | {best.value:.2f} | {best.low:.2f} to"
            f" {best.high:.2f} | {100 * best.sigma_rel:g} % | {min(blocks):.2f} to"
            f" {max(blocks):.2f} |"
        )


def sizes(results: Results) -> None:
    """Print cost and parameters of the networks."""
    print("\n| network | 1e6 multiply-accumulates per image | parameters |\n|---|---|---|")
    for name, preset in NETWORKS.items():
        net = load_config(preset).net
        macs = count_macs(net.backbone).total
        print(f"| {name} | {macs / 1e6:.2f} | {net.num_parameters()} |")


def magnitudes(results: Results) -> bool:
    """Print the magnitudes of blocks over training; whether those of MP-DiT stay within limits."""
    print("\n| network | images seen | blocks, lowest to highest | largest feature |")
    print("|---|---|---|---|")
    holds = True
    for name in NETWORKS:
        log = block_magnitudes(results, name)
        for nimg, blocks, largest in (log[0], log[len(log) // 2], log[-1]):
            print(f"| {name} | {nimg} | {min(blocks):.2f} to {max(blocks):.2f} | {largest:.1f} |")
            holds &= name != "MP-DiT" or (min(blocks) > 0.7 and max(blocks) < 1.4)
    return holds


def block_magnitudes(results: Results, name: str) -> list[tuple[int, list[float], float]]:
    """Images seen, magnitude of every block, and the largest feature, over a run of seed 0."""
    return [
        (
            nimg,
            [m.activation for m in layers if is_block(m.name)],
            max(bucket["max"] for bucket in by_bucket(layers).values()),
        )
        for nimg, layers in read_log(results.run(name, SEEDS[0]) / "measured.jsonl")
    ]


def is_block(name: str) -> bool:
    """Whether a path is that of a block, not of a part of it: backbone.layers.3, unet.enc.8x8."""
    return name.count(".") == 2 and name.split(".")[1] in ("layers", "enc", "dec")


def plot_blocks(results: Results, path: Path) -> None:
    """Draw the magnitude of every block over training, of MP-DiT also without its norm."""
    names = (*NETWORKS, PARTS[-1])
    figure = new_figure((2.6 * len(names), 3.2))
    for axes, name in zip(figure.subplots(1, len(names), sharey=True), names, strict=True):
        log = block_magnitudes(results, name)
        num = len(log[0][1])
        for block in range(num):
            color = f"{0.75 * (1 - block / (num - 1)):.2f}"
            axes.plot([n / 1000 for n, *_ in log], [b[block] for _, b, _ in log], color=color)
        axes.axhspan(0.7, 1.4, color="C2", alpha=0.12, lw=0)
        axes.set_title(f"MP-DiT, {name}" if name in PARTS else name, fontsize=10)
        axes.set_xlabel("thousand images seen")
        axes.set_yscale("log", base=2)
        axes.set_yticks([0.7, 1, 1.4, 2], ["0.7", "1", "1.4", "2"])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
    figure.axes[0].set_ylabel("RMS after a block; dark: late ones")
    save_figure(path, figure)


def samples(results: Results, path: Path) -> None:
    """Draw three digits of each class per network."""
    rows, names = [], []
    for name in NETWORKS:
        images = generate(
            f"{results.run(name, SEEDS[0])}@sigma_rel=0.07", range(30), classes="all",
            sampling=SAMPLING, device="cpu",
        ).numpy()  # fmt: skip
        rows += [np.stack(list(images[i : i + 10])) for i in (0, 10, 20)]
        names += [name, "", ""]
    plot_images(path, rows, names, [str(c) for c in range(10)])


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default="runs/transformers")
@click.option("--num", default=600, show_default=True, help="Images per EMA length.")
@click.option("--images", type=click.Path(path_type=Path), help="Folder for the figures.")
@click.option("--set", "changes", multiple=True, help="Change the configurations, to try it out.")
def main(out: Path, num: int, images: Path | None, changes: tuple[str, ...]) -> None:
    results = Results(out, num, list(changes))
    for seed in SEEDS:  # a seed of every network first
        for name in NETWORKS:
            results.sweep(name, seed)
    folder = images or out
    is_near = table(results)
    ablation(results)
    sizes(results)
    is_bounded = magnitudes(results)
    curves = {n: [of_length(results.sweep(n, s)) for s in SEEDS] for n in NETWORKS}
    plot_lengths(folder / "transformers-lengths.png", curves)
    plot_blocks(results, folder / "transformers-magnitudes.png")
    samples(results, folder / "transformers-samples.png")
    sys.exit(not (is_near and is_bounded))


if __name__ == "__main__":
    main()
