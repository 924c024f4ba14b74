"""Figures of a tick: sums that stay on the device until they are reported."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from edm2lite.diffusion.noise_density import NoiseDensity

from . import distributed
from .optimizer import GradientCheck

NUM_LEVELS = 12
WIDTH = 0.5  # of a range of noise levels, in standard deviations of ln sigma


class Figures:
    """Loss, loss and uncertainty by noise level, gradient norms, and what was not finite.

    Noise levels fall into 12 ranges of ln sigma around its median, each half a standard deviation
    wide (half of what lies between the quantiles of +-1 of them); the outer two take what lies
    further out. Samples whose loss is not finite are counted and kept out
    of every mean. The sums are part of checkpoints, so an interrupted tick ends with the same line.

    Args:
        noise: Density of the noise levels.
        device: Where the sums are kept.
    """

    def __init__(self, noise: NoiseDensity, device: torch.device):
        middle, half = noise.location()
        self._width = WIDTH * half
        self._low = middle - NUM_LEVELS / 2 * self._width
        double = partial(torch.zeros, dtype=torch.float64, device=device)
        whole = partial(torch.zeros, dtype=torch.int64, device=device)
        self._own = {  # to be added over ranks
            "loss": double(2),  # sum, samples
            "levels": double(NUM_LEVELS, 3),  # samples, sums of lambda L and of u
            "bad_samples": whole(1),
        }
        self._latest = {"bad_sample": whole(1) - 1}  # the largest over ranks
        self._same = {  # equal on all ranks
            "gradient": double(2),  # sum of norms, steps with a finite one
            "bad_steps": whole(4),  # in a row, longest row, in all, nimg of the last
        }

    def add_losses(self, losses: Tensor, u: Tensor, sigma: Tensor, indices: Tensor) -> None:
        """Take in this rank's samples of a step.

        Args:
            losses: [N] loss per element, ``lambda L / e**u + u``.
            u: [N] uncertainty.
            sigma: [N] noise levels.
            indices: [N] position of each sample in the run.
        """
        finite = losses.isfinite()
        self._own["loss"][0] += torch.where(finite, losses, 0).sum(dtype=torch.float64)
        self._own["loss"][1] += finite.sum()
        weighted = (losses - u) * u.exp()
        rows = torch.stack([torch.ones_like(u), weighted, u], 1).double()
        rows = torch.where((finite & rows.isfinite().all(1))[:, None], rows, 0)
        level = ((sigma.log() - self._low) / self._width).floor().clamp(0, NUM_LEVELS - 1)
        self._own["levels"].index_add_(0, level.nan_to_num().long(), rows)
        self._own["bad_samples"] += (~finite).sum()
        latest = torch.where(finite, -1, indices).max().reshape(1)
        self._latest["bad_sample"] = torch.maximum(self._latest["bad_sample"], latest)

    def add_step(self, nimg: int, gradient: GradientCheck) -> None:
        """Take in what the gradient of the step that began at ``nimg`` was like."""
        finite = gradient.finite
        self._same["gradient"][0] += torch.where(finite, gradient.norm, 0)
        self._same["gradient"][1] += finite
        row, longest, total, last = self._same["bad_steps"].unbind()
        row = torch.where(finite, 0, row + 1)
        self._same["bad_steps"] = torch.stack(
            [row, torch.maximum(longest, row), total + ~finite, torch.where(finite, last, nimg)]
        )

    def longest_bad_row(self) -> int:
        """Most steps in a row without a finite gradient since the last line; waits for a GPU."""
        return int(self._same["bad_steps"][1])

    def state(self) -> dict[str, Tensor]:
        """Copies of the sums over all ranks; every rank calls this."""
        return {
            **{name: distributed.sum_(value.clone()) for name, value in self._own.items()},
            **{name: distributed.max_(value.clone()) for name, value in self._latest.items()},
            **{name: value.clone() for name, value in self._same.items()},
        }

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue from :meth:`state`; rank 0 takes the sums that ranks add up."""
        for name, value in self._own.items():
            value.copy_(state[name]) if distributed.rank() == 0 else value.zero_()
        for part in (self._latest, self._same):
            for name, value in part.items():
                value.copy_(state[name])

    def finish(self) -> dict[str, Any]:
        """The line of the tick, and a new start; every rank calls this.

        Returns:
            ``loss`` per element; ``ln_sigma``, ``loss_at`` and ``u_at``: [12] centre of each range
            of noise levels, mean of ``lambda L`` and mean of u in it, None where no sample fell;
            ``grad_norm``, of the steps where it was finite; ``nonfinite_steps`` and
            ``nonfinite_samples`` since the start of the run, and the latest of each as
            ``last_bad_nimg`` and ``last_bad_sample``, None if there were none.
        """
        state = {name: value.tolist() for name, value in self.state().items()}
        for name in ("loss", "levels"):
            self._own[name].zero_()
        self._same["gradient"].zero_()
        self._same["bad_steps"][1] = self._same["bad_steps"][0]
        (total, count), (norm, steps) = state["loss"], state["gradient"]
        _, _, bad_steps, bad_nimg = state["bad_steps"]
        samples = state["bad_samples"][0]
        return {
            "loss": total / max(count, 1),
            "ln_sigma": [round(self._low + self._width * (i + 0.5), 6) for i in range(NUM_LEVELS)],
            "loss_at": [a / n if n else None for n, a, _ in state["levels"]],
            "u_at": [b / n if n else None for n, _, b in state["levels"]],
            "grad_norm": norm / steps if steps else None,
            "nonfinite_steps": bad_steps,
            "nonfinite_samples": samples,
            "last_bad_nimg": bad_nimg if bad_steps else None,
            "last_bad_sample": state["bad_sample"][0] if samples else None,
        }
