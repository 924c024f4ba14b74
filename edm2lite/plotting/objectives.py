"""Training objectives side by side, as curves over the noise level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edm2lite.diffusion.objective import Objective
from edm2lite.plotting.figure import new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 2001


def noise_grid(objectives: Mapping[str, Objective]) -> Tensor:
    """Equally spaced values of ln sigma that cover the densities of all objectives.

    Returns:
        [2001] float64, ascending.
    """
    places = [objective.loss.location() for objective in objectives.values()]
    low = min(middle - 4 * half for middle, half in places)
    high = max(middle + 4 * half for middle, half in places)
    return torch.linspace(low, high, POINTS, dtype=torch.float64)


def weight_quantiles(objective: Objective, shares: Sequence[float]) -> list[float]:
    """Quantiles of the noise level under the effective weight of an objective.

    Args:
        objective: The objective; of its weight, only that at finite noise levels counts.
        shares: Fractions of the effective weight, each in (0, 1).

    Returns:
        For each share, the noise level below which that share of the weight lies.

    Example:
        >>> from edm2lite.diffusion.noise_density import LogNormal
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.diffusion.weighting import Weighting
        >>> from edm2lite.network.unet import UNetConfig
        >>> net = PrecondConfig(backbone=UNetConfig(img_resolution=8, img_channels=1))
        >>> density = LogNormal(P_mean=-0.4, P_std=1.0)
        >>> objective = Objective(net=net, loss=density, weighting=Weighting())
        >>> [round(level, 2) for level in weight_quantiles(objective, (0.16, 0.5, 0.84))]
        [0.25, 0.67, 1.81]
    """
    log_sigma = noise_grid({"": objective})
    weight = objective.effective_weight(log_sigma)
    below = torch.cumulative_trapezoid(weight, log_sigma)
    at = torch.searchsorted(below, below[-1] * torch.tensor(shares, dtype=torch.float64))
    return log_sigma[at + 1].exp().tolist()


def plot_objectives(
    path: Path, objectives: Mapping[str, Objective], data_std: float | None = None
) -> None:
    """Draw the effective weight, the density, and the magnitudes of input and target.

    Effective weights are scaled to area 1, because Adam does not see a constant factor.

    Args:
        path: Name of the PNG file.
        objectives: Name -> objective; each gets one curve in each panel.
        data_std: Standard deviation of the images. [default: sigma_data of each objective]

    Raises:
        ImportError: If matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> from edm2lite.diffusion.noise_density import LogNormal
        >>> from edm2lite.diffusion.precond import PrecondConfig
        >>> from edm2lite.diffusion.weighting import Weighting
        >>> from edm2lite.network.unet import UNetConfig
        >>> net = PrecondConfig(backbone=UNetConfig(img_resolution=8, img_channels=1))
        >>> objective = Objective(net=net, loss=LogNormal(), weighting=Weighting())
        >>> path = Path(tempfile.mkdtemp()) / "objectives.png"
        >>> plot_objectives(path, {"EDM2": objective})
        >>> path.is_file()
        True
    """
    figure = new_figure((7.0, 8.0))
    weights, densities, magnitudes = figure.subplots(3, 1, sharex=True)
    log_sigma = noise_grid(objectives)
    sigma = log_sigma.exp()
    for i, (name, objective) in enumerate(objectives.items()):
        line = {"color": f"C{i}", "lw": max(3 - 0.6 * i, 1), "alpha": 0.8}  # equal curves show
        weight = objective.effective_weight(log_sigma)
        area = torch.trapezoid(weight, log_sigma)
        weights.plot(sigma, weight / area, label=label_of(name, objective), **line)
        densities.plot(sigma, objective.loss.pdf(log_sigma), **line)
        seen, target = objective.magnitudes(sigma, data_std or objective.net.sigma_data)
        magnitudes.plot(sigma, target, **line)
        magnitudes.plot(sigma, seen, ls="--", color=f"C{i}", lw=1)
        _mark_infinity(densities, objective.loss.mass_at_infinity, i)
    weights.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1))
    weights.set_ylabel("weight x density")
    densities.set_ylabel("density of ln sigma")
    magnitudes.set_ylabel("target (-), input (--)")
    std = "" if data_std is None else f"; images of standard deviation {data_std:g}"
    magnitudes.set_xlabel(f"noise level sigma{std}")
    magnitudes.set_yscale("log", base=2)
    magnitudes.yaxis.set_major_formatter("{x:g}")
    low, high = magnitudes.get_ylim()
    magnitudes.set_ylim(min(low, 0.5), max(high, 2))
    for panel in (weights, densities, magnitudes):
        panel.set_xscale("log")
        panel.grid(alpha=0.25)
    save_figure(path, figure)


def label_of(name: str, objective: Objective) -> str:
    """The name of an objective with its parametrization, weighting and density."""
    parts = objective.net.parametrization, objective.weighting.kind, objective.loss.kind
    return f"{name}: {', '.join(parts)}"


def _mark_infinity(axes: Axes, mass: float, row: int) -> None:
    if mass:
        axes.annotate(
            f"{mass:g} at infinity ->", xy=(0.99, 0.88 - 0.1 * row), xycoords="axes fraction",
            ha="right", color=f"C{row}", fontsize=8,
        )  # fmt: skip
