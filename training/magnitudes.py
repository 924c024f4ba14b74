"""Magnitudes of the network while it trains: lines of ``magnitudes.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from edm2lite.diffusion.objective import noised
from edm2lite.diffusion.precond import Precond
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.magnitudes import (
    Magnitude,
    Meter,
    by_bucket,
    copies,
    relative_updates,
    to_line,
)

from . import distributed
from .monitor import keep_until


class MagnitudeLog:
    """Measures a step every so many images; every rank calls it, rank 0 writes.

    Activations are those of an extra pass over what this rank saw last, without gradients and not
    compiled; updates are the change of the weights over the whole step, forced weight normalisation
    included.

    Args:
        net: The denoiser; shards are gathered for the figures, not for the weights.
        run_dir: ``magnitudes.jsonl`` goes here.
        interval: Images between lines; 0 for none.
        nimg: Where the run continues; later lines are dropped, for they will be written again.
    """

    def __init__(self, net: Precond, run_dir: Path, interval: int, nimg: int):
        self._net, self._path, self._interval = net, run_dir / "magnitudes.jsonl", interval
        self._seen: tuple[Tensor, Tensor, Tensor, Conditioning] | None = None
        self._latest: dict[str, dict[str, float]] = {}
        if interval and distributed.rank() == 0:
            keep_until(self._path, nimg)

    def see(self, images: Tensor, noise: Tensor, sigma: Tensor, told: Conditioning) -> None:
        """What the network is given; the last of a step is measured."""
        self._seen = images, noise, sigma, told

    @contextmanager
    def around(self, nimg: int) -> Iterator[None]:
        """Measure the step within the block, which ends at ``nimg`` images, if it is due."""
        if not self._interval or nimg % self._interval:
            yield
            return
        before = copies(self._net)
        yield
        updates = relative_updates(self._net, before)
        assert self._seen is not None
        found = _measure(self._net, *self._seen, updates)
        self._latest = by_bucket(found)
        if distributed.rank() == 0:
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(to_line(nimg, found) + "\n")

    def figures(self) -> dict[str, dict[str, float]]:
        """Mean activation of the blocks by bucket, as of the last line; nothing without one."""
        if not self._latest:
            return {}
        return {"activation": {name: group["mean"] for name, group in self._latest.items()}}


@torch.compiler.disable
@torch.no_grad()
def _measure(
    net: Precond,
    images: Tensor,
    noise: Tensor,
    sigma: Tensor,
    told: Conditioning,
    updates: dict[str, float],
) -> list[Magnitude]:
    with Meter(net) as meter:
        net(noised(images, sigma, noise), sigma, told)
    return meter.magnitudes(updates)
