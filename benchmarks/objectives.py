"""Digits under different objectives at equal cost, each with its best EMA length.

The protocol is that of ``edm2lite demo``: 1000 steps of the digits preset, reconstructed averages
of eight lengths, 1000 images for each in 16 steps of Heun's method. Started again, it continues.

Example:
  python benchmarks/objectives.py --out runs/objectives
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import click

LENGTHS = "0.02,0.03,0.05,0.07,0.10,0.14,0.20,0.25"
OBJECTIVES = {
    "EDM2": [],
    "v + min-SNR": ["net.parametrization=v", "weighting.kind=min_snr"],
    "rectified flow + logit-normal": [
        "net.parametrization=flow",
        "weighting.kind=flow",
        "loss={kind: logit_normal, shift: 0.5}",
    ],
    "TrigFlow": ["net.parametrization=trigflow"],
}
NAMES = {"EDM2": "edm2", "v + min-SNR": "v", "TrigFlow": "trigflow"}


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default="runs/objectives")
@click.option("--num", default=1000, show_default=True, help="Images per EMA length.")
@click.option("--lengths", default=LENGTHS, show_default=True, help="EMA lengths.")
def main(out: Path, num: int, lengths: str) -> None:
    """Print one row per objective."""
    out.mkdir(parents=True, exist_ok=True)
    classifier, reference = out / "classifier.safetensors", out / "reference.safetensors"
    if not reference.is_file():
        _edm2lite("classifier", "--out", classifier)
        stats = ["--extractor", "digits", "--weights", classifier, "--out", reference]
        _edm2lite("evaluate", "stats", "digits", *stats)
    measured = {}
    for name, changes in OBJECTIVES.items():
        run = out / NAMES.get(name, "flow")
        settings = [word for change in changes for word in ("--set", change)]
        _python("edm2lite.training", "digits", "--out", run, *settings)
        _python(
            "edm2lite.tools.sweep_ema", run, "--sigma-rel", lengths, "--ref", reference,
            "--weights", classifier, "--num", num, "--steps", 16,
        )  # fmt: skip
        measured[name] = distances(run / "sweep.csv")
    print("| objective | best EMA length | Fréchet distance | against EDM2 | raw last weights |")
    print("|---|---|---|---|---|")
    for name, by_length in measured.items():
        raw = by_length.pop("")
        length = min(by_length, key=by_length.__getitem__)
        best, ratio = by_length[length], by_length[length] / min(measured["EDM2"].values())
        print(f"| {name} | {100 * float(length):g} % | {best:.3f} | {ratio:.2f} | {raw:.3f} |")


def distances(path: Path) -> dict[str, float]:
    """EMA length as written in the CSV file ("" for the raw weights) -> Fréchet distance."""
    with open(path, encoding="utf-8", newline="") as file:
        return {row["sigma_rel"]: float(row["value"]) for row in csv.DictReader(file)}


def _edm2lite(*words: object) -> None:
    _python("edm2lite.tools.edm2lite", *words)


def _python(module: str, *words: object) -> None:
    subprocess.run([sys.executable, "-m", module, *map(str, words)], check=True)


if __name__ == "__main__":
    main()
