"""Configurations as version 0.1 wrote them, in model files and in the folders of runs.

They had a U-Net under the key ``unet``, where any network now stands under ``backbone``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a :class:`edm2lite.diffusion.precond.PrecondConfig`, written by any version.

    Example:
        >>> upgraded({"unet": {"img_resolution": 8}, "sigma_data": 0.5})
        {'backbone': {'kind': 'unet', 'img_resolution': 8}, 'sigma_data': 0.5}
    """
    changed = dict(values)
    if "unet" in changed:
        changed = {"backbone": {"kind": "unet", **changed.pop("unet")}, **changed}
    return changed


def upgraded_run(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a run's YAML file with its ``net`` :func:`upgraded`.

    Example:
        >>> upgraded_run({"net": {"unet": {}}, "batch_size": 64})
        {'net': {'backbone': {'kind': 'unet'}}, 'batch_size': 64}
    """
    net = values.get("net")
    return {**values, "net": upgraded(net)} if isinstance(net, dict) else values
