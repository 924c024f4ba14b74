"""Learning rate as a function of images seen."""

from __future__ import annotations

import math


def learning_rate(
    nimg: int, batch_size: int, *, ref_lr: float, ref_batches: float, rampup_nimg: int
) -> float:
    """``ref_lr / sqrt(max(t / ref_batches, 1))`` with t in batches, after a linear ramp (Eq. 67).

    Args:
        nimg: Images seen before the step; the first step has rate 0 when there is a ramp.
        batch_size: Images per step.
        ref_lr: Peak rate alpha_ref.
        ref_batches: Batches t_ref at which the decay begins; 0 for no decay.
        rampup_nimg: Length of the ramp in images; 0 for none.
    """
    lr = ref_lr
    if ref_batches > 0:
        lr /= math.sqrt(max(nimg / (ref_batches * batch_size), 1))
    if rampup_nimg > 0:
        lr *= min(nimg / rampup_nimg, 1)
    return lr
