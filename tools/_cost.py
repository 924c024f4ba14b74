"""The cost of networks: their parameters and multiply-accumulates per evaluation."""

from __future__ import annotations

from edm2lite.config_file import shipped
from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.models.loading import load
from edm2lite.network.flops import count_macs

from ._cli import table
from ._config import network


def cost_table(model: str | None) -> str:
    """A table with one line for the model, or without it one for every shipped configuration."""
    configs = presets() if model is None else {model: load(model).net.config}
    rows = []
    for name, config in configs.items():
        macs = count_macs(config.backbone)
        counts = (config.num_parameters() / 1e6, macs.convolution / 1e9, macs.matmul / 1e9)
        rows.append([name, *counts, macs.total / 1e9])
    columns = {"network": "", "parameters, M": ".3f", "convolutions, GMAC": ".2f"}
    return table({**columns, "matrix products, GMAC": ".3f", "total, GMAC": ".2f"}, rows)


def presets() -> dict[str, PrecondConfig]:
    """Name -> network of every shipped configuration, smallest network first."""
    found = {name: network(name) for name in shipped()}
    return dict(sorted(found.items(), key=lambda item: (item[1].num_parameters(), item[0])))
