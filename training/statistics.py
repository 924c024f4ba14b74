"""Statistics of a tick: what stays on the device until it is reported.

A step only puts its tensors aside. They are added up together, so that a step costs a GPU no kernel
for its statistics.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.diffusion.noise_density import NoiseDensity

from . import distributed

NUM_LEVELS = 12
"""Number of ranges of noise levels."""

WIDTH = 0.5
"""Width of a range, in standard deviations of ln sigma."""

PENDING = 256
"""Number of forward passes whose samples are added up together at the latest."""

NAMES = (
    "nimg",
    "loss",
    "ln_sigma",
    "loss_at",
    "u_at",
    "grad_norm",
    "nonfinite_steps",
    "nonfinite_samples",
    "last_bad_nimg",
    "last_bad_sample",
    "lr",
    "activation",
    "sec_per_kimg",
    "img_per_sec",
    "mem_gib",
)
"""Names in the lines of ``stats.jsonl`` that are the trainer's own."""


class Statistics:
    """Loss, loss and uncertainty by noise level, gradient norms, and what was not finite.

    Noise levels fall into 12 ranges of ln sigma around its median, each half a standard deviation
    wide (a quarter of the distance between the quantiles of -1 and +1 standard deviation); the
    outer two take what lies further out. Samples whose loss is not finite are counted and kept out
    of every mean. The sums are part of checkpoints, so that an interrupted tick ends with the same
    line.

    Args:
        noise: Density of the noise levels.
        device: Device on which the sums are kept.
    """

    def __init__(self, noise: NoiseDensity, device: torch.device):
        middle, half = noise.location()
        self._width = WIDTH * half
        self._low = middle - NUM_LEVELS / 2 * self._width
        double = partial(torch.zeros, dtype=torch.float64, device=device)
        integers = partial(torch.zeros, dtype=torch.int64, device=device)
        self._summed = {  # over ranks
            "loss": double(2),  # sum, samples
            "levels": double(NUM_LEVELS, 3),  # samples, sums of lambda L and of u
            "bad_samples": integers(1),
        }
        self._largest = {"bad_sample": integers(1) - 1}  # over ranks
        self._gradient = [0.0, 0.0]  # sum of norms, steps with a finite one
        self._bad_steps = [0, 0, 0, 0]  # streak, longest streak, total, nimg of the last
        self._device = device
        self._samples: list[tuple[Tensor, Tensor, Tensor]] = []  # not yet added up
        self._indices: list[NDArray[np.int64]] = []
        self._norms: list[Tensor] = []  # not yet read
        self._norms_at: list[int] = []

    def add_losses(
        self, losses: Tensor, u: Tensor, sigma: Tensor, indices: NDArray[np.int64]
    ) -> None:
        """Add the samples of one forward pass of this rank.

        Args:
            losses: [N] loss per element, ``lambda L / e**u + u``.
            u: [N] uncertainty.
            sigma: [N] noise levels.
            indices: [N] position of each sample in the run.
        """
        self._samples.append((losses, u, sigma))
        self._indices.append(indices)
        if len(self._samples) == PENDING:
            self._add_up()

    def add_step(self, nimg: int, norm: Tensor) -> None:
        """Add the gradient of one step.

        Args:
            nimg: Image count at which the step began.
            norm: Norm of the gradient, 0-dim float64, not finite if the gradient was not.
        """
        self._norms.append(norm)
        self._norms_at.append(nimg)

    def _add_up(self) -> None:
        """Take the samples put aside into the sums, one after the other whatever their number."""
        if not self._samples:
            return
        losses, u, sigma = map(torch.cat, zip(*self._samples, strict=True))
        indices = torch.from_numpy(np.concatenate(self._indices)).to(self._device)
        self._samples, self._indices = [], []
        finite = losses.isfinite()
        weighted = (losses - u) * u.exp()
        rows = torch.stack([torch.ones_like(u), weighted, u], 1).double()
        rows = torch.where((finite & rows.isfinite().all(1))[:, None], rows, 0)
        level = ((sigma.log() - self._low) / self._width).floor().clamp(0, NUM_LEVELS - 1)
        level = level.nan_to_num().long()
        self._summed["levels"].index_add_(0, level, rows)
        totals = torch.stack([torch.where(finite, losses, 0), finite], 1).double()
        self._summed["loss"].view(1, 2).index_add_(0, torch.zeros_like(level), totals)
        self._summed["bad_samples"] += (~finite).sum()
        latest = torch.where(finite, -1, indices).max().reshape(1)
        self._largest["bad_sample"] = torch.maximum(self._largest["bad_sample"], latest)

    def _read_norms(self) -> None:
        """Take the norms put aside into the sums. Waits for a GPU."""
        if not self._norms:
            return
        streak, longest, total, last = self._bad_steps
        for nimg, norm in zip(self._norms_at, torch.stack(self._norms).tolist(), strict=True):
            if math.isfinite(norm):
                self._gradient[0] += norm
                self._gradient[1] += 1
                streak = 0
            else:
                streak, total, last = streak + 1, total + 1, nimg
                longest = max(longest, streak)
        self._bad_steps = [streak, longest, total, last]
        self._norms, self._norms_at = [], []

    def bad_streak(self) -> int:
        """Number of the latest steps in a row whose gradient was not finite. Waits for a GPU."""
        self._read_norms()
        return self._bad_steps[0]

    def longest_bad_streak(self) -> int:
        """Largest number of steps in a row, since the last line, whose gradient was not finite.

        Waits for a GPU.
        """
        self._read_norms()
        return self._bad_steps[1]

    def state(self) -> dict[str, Tensor]:
        """Copies of the sums over all ranks; every rank calls this."""
        self._add_up()
        self._read_norms()
        return {
            **{name: distributed.sum_(value.clone()) for name, value in self._summed.items()},
            **{name: distributed.max_(value.clone()) for name, value in self._largest.items()},
            "gradient": torch.tensor(self._gradient, dtype=torch.float64),
            "bad_steps": torch.tensor(self._bad_steps),
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from what :meth:`state` returned; rank 0 takes the sums over ranks."""
        self._samples, self._indices, self._norms, self._norms_at = [], [], [], []
        for name, value in self._summed.items():
            value.copy_(state[name]) if distributed.rank() == 0 else value.zero_()
        for name, value in self._largest.items():
            value.copy_(state[name])
        self._gradient = state["gradient"].tolist()
        self._bad_steps = state["bad_steps"].tolist()

    def finish_tick(self) -> dict[str, Any]:
        """The values of the tick, which ends here; every rank calls this.

        Returns:
            ``loss`` per element, None if none was finite; ``ln_sigma``, ``loss_at`` and ``u_at``:
            [12] center of each range of noise levels, mean of ``lambda L`` and mean of u in it,
            None where no sample fell;
            ``grad_norm``, mean over the steps where it was finite; ``nonfinite_steps`` and
            ``nonfinite_samples`` since the start of the run, and the latest of each as
            ``last_bad_nimg`` and ``last_bad_sample``, None if there were none.
        """
        state = {name: value.tolist() for name, value in self.state().items()}
        for name in ("loss", "levels"):
            self._summed[name].zero_()
        self._gradient = [0.0, 0.0]
        self._bad_steps[1] = self._bad_steps[0]
        (total, count), (norm, steps) = state["loss"], state["gradient"]
        _, _, bad_steps, bad_nimg = state["bad_steps"]
        samples = state["bad_samples"][0]
        return {
            "loss": total / count if count else None,
            "ln_sigma": [round(self._low + self._width * (i + 0.5), 6) for i in range(NUM_LEVELS)],
            "loss_at": [a / n if n else None for n, a, _ in state["levels"]],
            "u_at": [b / n if n else None for n, _, b in state["levels"]],
            "grad_norm": norm / steps if steps else None,
            "nonfinite_steps": bad_steps,
            "nonfinite_samples": samples,
            "last_bad_nimg": bad_nimg if bad_steps else None,
            "last_bad_sample": state["bad_sample"][0] if samples else None,
        }
