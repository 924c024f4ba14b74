"""What the demo says at its end: how good samples are, a table, and a page that shows all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edm2lite.atomic import replacing
from edm2lite.dataset import open_dataset
from edm2lite.dataset.digits import open_digits
from edm2lite.sweep import Point, best, best_average
from edm2lite.units import format_percent


def judge(folder: Path) -> tuple[float, float]:
    """Accuracy of a support-vector classifier on pixels: (generated images, held-out real digits).

    The classifier learns from one half of the real digits, and knows nothing of the feature
    extractor.
    """
    from sklearn.svm import SVC

    real, generated = open_digits(), open_dataset(folder)
    assert real.labels is not None and generated.labels is not None
    pixels = real.images(range(len(real))).reshape(len(real), -1) / 255
    half = len(pixels) // 2
    svc = SVC(gamma=0.001 * 16**2).fit(pixels[:half], real.labels[:half])
    samples = generated.images(range(len(generated))).reshape(len(generated), -1) / 255
    right = svc.predict(samples) == generated.labels
    return float(np.mean(right)), float(svc.score(pixels[half:], real.labels[half:]))


def write_report(path: Path, points: Sequence[Point], *, accuracy: float, real: float) -> str:
    """Write the page; returns the short text for the terminal."""
    lowest = best_average(points)
    lines = [
        "| EMA length | gamma | Fréchet distance | predicted error of the weights |",
        "|---|---|---|---|",
    ]
    for point in points:
        name = "raw last weights" if point.sigma_rel is None else format_percent(point.sigma_rel)
        gamma = "" if point.gamma is None else f"{point.gamma:.2f}"
        error = "" if point.sigma_rel is None else f"{point.predicted_error:.1e}"
        mark = " **best**" if point is best(points) else ""
        lines.append(f"| {name} | {gamma} | {point.value:.3f}{mark} | {error} |")
    table = "\n".join(lines)
    raw = [point.value for point in points if point.sigma_rel is None]
    against = f", raw last weights {raw[0]:.3f}" if raw else ""
    figures = (
        f"Best EMA length {format_percent(lowest.sigma_rel or 0)}: FD {lowest.value:.3f}"
        f"{against}.\n"
        f"Class accuracy of {lowest.num} samples at that length, judged by an SVC on pixels:"
        f" {accuracy:.1%} (the SVC on held-out real digits: {real:.1%})."
    )
    page = (
        f"# Digits: EMA length after training\n\n{figures}\n\n{table}\n\n"
        f"Distances are between {lowest.num} generated images and the 1797 real digits, in the\n"
        "features of a small digit classifier. Every length uses the same seeds.\n\n"
        "![EMA length against Fréchet distance](sweep.png)\n\n"
        "One row per EMA length (first row: raw last weights), one column per class:\n\n"
        "![samples](samples.png)\n\n"
        "Beside this page: `config.yaml` (the resolved configuration), `stats.jsonl` (training\n"
        "curve), `snapshots/`, `ema/` (rebuilt averages), `sweep.csv`.\n"
    )
    with replacing(path) as file:
        file.write(page)
    return f"{table}\n\n{figures}"
