"""Which snapshots can go while reconstructions stay as good as asked."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular

from edm2lite.atomic import sync
from edm2lite.ema.doctor import THINNED, predict
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.sample import fit_sample, read_sample
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.solve import responses

Array = NDArray[np.float64]


def removal_order(
    have: Array,
    want: Array,
    removable: Sequence[int],
    max_error: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """Sources in the order in which their loss costs least, while the error stays below a limit.

    Minimises ``|x @ have - want|**2`` with ``sum x = 1`` for every target. With the last source as
    the reference this is plain least squares, where leaving out source i adds exactly
    ``x_i**2 / inverse(H)_ii`` to the square: one QR factorisation prices all candidates of a round,
    and a first one makes the vectors as short as their number.

    Args:
        have: [K, M] vectors of the sources; the last one always stays.
        want: [R, M] vectors of the targets.
        removable: Indices of sources that may go.
        max_error: Limit of the worst error over the targets.
        progress: Called with (removed, removable) after each round.
    """
    k = len(have) - 1
    short = qr(np.concatenate([have[:-1], want]).T - have[-1][:, None], mode="r")[0]
    columns, right = short[: len(short), :k], short[:, k:]
    kept, order = list(range(k)), []
    allowed = set(removable) - {k}
    while candidates := [j for j, i in enumerate(kept) if i in allowed]:
        size = np.maximum(np.linalg.norm(columns[:, kept], axis=0), 1e-300)
        q, r = qr(columns[:, kept] / size, mode="economic")
        r = r + np.diag(np.where(np.abs(np.diag(r)) < 1e-14, 1e-14, 0))
        x = solve_triangular(r, q.T @ right)
        inverse = solve_triangular(r, np.eye(len(kept)))
        square = ((right - q @ (q.T @ right)) ** 2).sum(axis=0)
        cost = x**2 / (inverse**2).sum(axis=1)[:, None]
        worst = np.sqrt((square + cost).max(axis=1))
        best = min(candidates, key=lambda j: worst[j])
        if not worst[best] <= max_error:
            break
        order.append(kept.pop(best))
        if progress is not None:
            progress(len(order), len(allowed))
    return order


def plan_thinning(
    infos: Sequence[SnapshotInfo],
    sigma_rels: NDArray[np.float64],
    max_error: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[SnapshotInfo], float]:
    """Snapshots that can go, and the worst predicted error of what stays.

    The limit holds for the solver that :func:`edm2lite.ema.reconstruct` uses, for averages that
    end at the latest snapshot, both under the model learnt from all snapshots and under the one
    learnt from those that stay. Those of the latest time always stay. Averages that end earlier
    lose accuracy without limit.

    Args:
        infos: Sound snapshots of a run, by time.
        sigma_rels: [R] relative widths that must stay good.
        max_error: Limit of the predicted error.
        progress: As :func:`removal_order`.

    Raises:
        ValueError: Even all snapshots do not reach ``max_error``.
    """
    sample = read_sample(infos)
    model = fit_sample(infos, sample)
    before = float(predict(infos, sigma_rels, model).max())
    if not before <= max_error:
        raise ValueError(
            f"the limit must be at least what all {len(infos)} snapshots reach, {before:.1e} is"
            f" above {max_error:g}; raise --max-error or narrow the range"
        )
    end = infos[-1].nimg
    sources = [info.profile for info in infos]
    targets = [PowerFunction.of_width(float(s), end) for s in sigma_rels]
    rounding = [ROUNDING[info.dtype] for info in infos]
    have, want, noise = responses(sources, targets, model, rounding)
    order = removal_order(
        np.concatenate([have, noise], axis=1),
        np.concatenate([want, np.zeros((len(want), noise.shape[1]))], axis=1),
        [i for i, info in enumerate(infos) if info.nimg < end],
        max_error / model.misfit,
        progress,
    )

    def error_after(count: int) -> float:
        gone = set(order[:count])
        stay = [i for i in range(len(infos)) if i not in gone]
        kept = [infos[i] for i in stay]
        known = float(predict(kept, sigma_rels, model).max())
        if not known <= max_error:
            return known
        return max(known, float(predict(kept, sigma_rels, fit_sample(kept, sample[stay])).max()))

    good, bad, error = 0, len(order) + 1, before
    while bad - good > 1:  # more can go in this order with every coefficient free than in practice
        middle = len(order) if bad > len(order) else (good + bad) // 2
        found = error_after(middle)
        if found <= max_error:
            good, error = middle, found
        else:
            bad = middle
    return [infos[i] for i in order[:good]], error


def remove(infos: Sequence[SnapshotInfo]) -> int:
    """Delete snapshots, noting each in ``thinned.jsonl`` beside them; returns the bytes freed."""
    freed = 0
    for folder in {info.path.parent for info in infos}:
        with open(folder / THINNED, "a") as file:
            for info in (i for i in infos if i.path.parent == folder):
                line = {
                    "file": info.path.name,
                    "nimg": info.nimg,
                    "sigma_rel": info.sigma_rel,
                    "gamma": info.gamma,
                    "digest": info.header.digest,
                }
                file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        sync(Path(folder))
    for info in infos:
        freed += info.path.stat().st_size
        info.path.unlink()
    return freed
