"""What networks cost: parameters and multiply-accumulates of shipped configurations or a model."""

from __future__ import annotations

from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.models.loading import load
from edm2lite.network.flops import count_macs, num_parameters

from ._cli import table
from ._config import network, shipped


def cost_table(model: str | None) -> str:
    """One line for MODEL, or one for every shipped configuration."""
    configs = presets() if model is None else {model: load(model).net.config}
    rows = []
    for name, config in configs.items():
        macs = count_macs(config)
        counts = (num_parameters(config) / 1e6, macs.convolution / 1e9, macs.matmul / 1e9)
        rows.append([name, *counts, macs.total / 1e9])
    columns = {"network": "", "parameters, M": ".3f", "convolutions, GMAC": ".2f"}
    return table({**columns, "matrix products, GMAC": ".3f", "total, GMAC": ".2f"}, rows)


def presets() -> dict[str, PrecondConfig]:
    """The networks of the shipped configurations, by size."""
    found = {name: network(values, name) for name, values in shipped().items()}
    return dict(sorted(found.items(), key=lambda item: (num_parameters(item[1]), item[0])))
