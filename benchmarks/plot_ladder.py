"""Figures of ``ladder.py`` and ``transformers.py``: FD over EMA length, magnitudes, groups."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edm2lite.network.magnitudes import Magnitude, by_bucket
from edm2lite.plotting.figure import new_figure, save_figure
from edm2lite.sweep import Point

Curve = Mapping[float, float]
Log = Sequence[tuple[int, Sequence[Magnitude]]]


def plot_lengths(path: Path, curves: Mapping[str, Sequence[Curve]]) -> None:
    """All networks in one picture, as the paper's Figure 5a; bands are the extremes of the seeds.

    A name with a comma, as "A, noise of B", is dashed in the color of what stands before it.
    """
    figure = new_figure((7.5, 4.8))
    axes = figure.add_subplot()
    colors = list(dict.fromkeys(name.partition(",")[0] for name in curves))
    for rung, seeds in curves.items():
        lengths = sorted(seeds[0])
        means = [statistics.mean(c[s] for c in seeds) for s in lengths]
        style = "--" if "," in rung else "-"
        color = f"C{colors.index(rung.partition(',')[0])}"
        axes.plot([100 * s for s in lengths], means, style, color=color, label=rung)
        low, high = ([edge(c[s] for c in seeds) for s in lengths] for edge in (min, max))
        axes.fill_between([100 * s for s in lengths], low, high, color=color, alpha=0.12, lw=0)
        best = means.index(min(means))
        axes.plot([100 * lengths[best]], [means[best]], "*", ms=12, color=color)
    _along_lengths(axes, lengths)
    axes.set_xlabel("EMA length sigma_rel, % of training time")
    axes.set_ylabel("Fréchet distance (features of a digit classifier)")
    axes.set_yscale("log")
    for set_formatter in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        set_formatter(lambda value, _: f"{value:g}")
    axes.legend(frameon=False, fontsize=8, ncols=2)
    save_figure(path, figure)


def plot_magnitudes(path: Path, logs: Mapping[str, Sequence[Log]]) -> None:
    """Activations and weights over training, as in Figures 3 and 15; means of the seeds."""
    figure = new_figure((2.1 * len(logs), 5.0))
    panels = figure.subplots(2, len(logs), sharex=True, sharey="row")
    for column, (name, seeds) in enumerate(logs.items()):
        nimg = [n / 1000 for n, _ in seeds[0]]
        upper, lower = panels[:, column]
        for bucket in by_bucket(seeds[0][0][1]):
            means = [
                statistics.mean(by_bucket(log[i][1])[bucket]["mean"] for log in seeds)
                for i in range(len(nimg))
            ]
            upper.plot(nimg, means, "--" if bucket.startswith("dec") else "-", label=bucket)
            weights = [
                statistics.mean(_weight(log[i][1], bucket) for log in seeds)
                for i in range(len(nimg))
            ]
            lower.plot(nimg, weights, "--" if bucket.startswith("dec") else "-", label=bucket)
        upper.set_title(name, fontsize=10)
        for axes in (upper, lower):
            axes.grid(alpha=0.25)
    panels[0, 0].set_ylabel("activations of blocks (RMS)")
    panels[1, 0].set_ylabel("weights of layers (RMS)")
    panels[0, 0].set_yscale("log", base=2)
    panels[1, 0].set_yscale("log", base=2)
    panels[1, -1].legend(frameon=False, fontsize=8, loc="lower left")
    figure.supxlabel("thousand images seen", fontsize=10)
    save_figure(path, figure)


def plot_groups(path: Path, groups: Mapping[str, Sequence[Sequence[Point]]]) -> None:
    """FD with one group of tensors at another length, as the paper's Figure 5b; means of seeds."""
    figure = new_figure((4.6 * len(groups), 3.8))
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, (rung, seeds) in zip(panels, groups.items(), strict=True):
        names = dict.fromkeys(p.group for p in seeds[0] if p.group)
        for name in names:
            lengths = sorted({p.sigma_rel for p in seeds[0] if p.sigma_rel is not None})
            means = [
                statistics.mean(_relative(points, name, length) for points in seeds)
                for length in lengths
            ]
            axes.plot([100 * s for s in lengths], means, ".-", label=name)
        axes.axhline(1, color="black", lw=0.8)
        _along_lengths(axes, lengths)
        axes.set_title(f"config {rung}", fontsize=10)
        axes.set_xlabel("EMA length of the group alone, %")
    panels[0].set_ylabel("FD, relative to one length for all")
    panels[-1].legend(frameon=False, fontsize=8)
    save_figure(path, figure)


def _relative(points: Sequence[Point], group: str, length: float | None) -> float:
    """FD with the group at a length, relative to that of one length, that of the rest, for all."""
    own = [p for p in points if p.group == group and p.sigma_rel == length]
    if not own:  # it is the length of the rest
        return 1.0
    (base,) = (p for p in points if not p.group and p.sigma_rel == own[0].rest_sigma_rel)
    return own[0].value / base.value


def _weight(layers: Sequence[Magnitude], bucket: str) -> float:
    """Mean RMS of the weights of the convolutions in a bucket."""
    found = [
        m.weight
        for m in layers
        if m.weight is not None and m.bucket == bucket and "norm" not in m.name
    ]
    return statistics.mean(found)


def _along_lengths(axes: Any, lengths: Sequence[float | None]) -> None:
    shown = [100 * s for s in lengths if s is not None]
    axes.set_xscale("log")
    axes.set_xticks(shown, [f"{s:.3g}" for s in shown])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
