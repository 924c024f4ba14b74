"""Learning rate as a function of images seen."""

from __future__ import annotations

import math


def learning_rate(
    nimg: int, batch_size: int, *, ref_lr: float, ref_batches: float, rampup_nimg: int
) -> float:
    """``ref_lr / sqrt(max(t / ref_batches, 1))`` with t in batches, after a linear ramp (Eq. 67).

    Args:
        nimg: Number of images seen before the step; with a ramp the first step has rate 0.
        batch_size: Number of images per step.
        ref_lr: Peak rate alpha_ref.
        ref_batches: Number of batches t_ref after which the decay begins; 0 for no decay.
        rampup_nimg: Length of the ramp in images; 0 for no ramp.

    Example:
        >>> options = {"ref_lr": 0.01, "ref_batches": 70_000, "rampup_nimg": 10_000_000}
        >>> [round(learning_rate(n * 2048, 2048, **options), 6) for n in (0, 1000, 70_000, 280_000)]
        [0.0, 0.002048, 0.01, 0.005]
    """
    lr = ref_lr
    if ref_batches > 0:
        lr /= math.sqrt(max(nimg / (ref_batches * batch_size), 1))
    if rampup_nimg > 0:
        lr *= min(nimg / rampup_nimg, 1)
    return lr
