"""Finds snapshots that can be deleted while reconstructions stay within a limit of error."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import qr, solve_triangular

from edm2lite.claim import Claim, claim_file
from edm2lite.ema.calibration import fit_model
from edm2lite.ema.doctor import THINNED, predict
from edm2lite.ema.folder import snapshot_folder
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.selection import MAX_SOURCES, select_sources
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.ema.solve import responses
from edm2lite.ema.trajectory import TrajectoryModel
from edm2lite.jsonlines import append_line

Array = NDArray[np.float64]


def removal_order(
    sources: Array,
    targets: Array,
    removable: Sequence[int],
    max_error: float,
    progress: Callable[[int, int], None] | None = None,
) -> list[int]:
    """The sources whose removal costs least, in order, while the error stays within a limit.

    Minimizes ``|x @ sources - target|**2`` with ``sum x = 1`` for every target. With the last
    source as the reference this is plain least squares, where leaving out source i adds exactly
    ``x_i**2 / inverse(H)_ii`` to the square: one QR factorization prices all candidates of a round.
    A first factorization reduces the vectors to as many elements as there are vectors.

    Args:
        sources: [K, M] vectors of the sources; the last one is never removed.
        targets: [R, M] vectors of the targets.
        removable: Indices of sources that may be removed.
        max_error: Limit of the largest error over the targets.
        progress: Called with the number removed and the number removable after each round.

    Example:
        >>> sources = np.array([[1.0, 0.0], [1.0, 1e-6], [0.0, 1.0]])  # the first two are alike
        >>> len(removal_order(sources, np.array([[0.5, 0.5]]), [0, 1], max_error=1e-3))
        1
    """
    k = len(sources) - 1
    short = qr(np.concatenate([sources[:-1], targets]).T - sources[-1][:, None], mode="r")[0]
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
    """Snapshots that can be deleted, and the largest predicted error without them.

    The limit holds for averages that end at the latest snapshot, with the default solver of
    :func:`edm2lite.ema.reconstruct`, both under the model fitted to all snapshots and under the one
    fitted to those that are kept. Snapshots of the latest time are always kept. Averages that end
    earlier may lose any amount of accuracy.

    Args:
        infos: Intact snapshots of a run, by time.
        sigma_rels: [R] EMA lengths that must stay within the limit.
        max_error: Limit of the predicted error.
        progress: Called with the number removed and the number removable after each round.

    Raises:
        ValueError: If not even all snapshots together reach ``max_error``.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, list_snapshots
        >>> weights, folder = {"w": torch.ones(50)}, tempfile.mkdtemp()
        >>> ema = PowerFunctionEMA(weights)
        >>> for step in range(1, 9):
        ...     weights["w"] += 0.01 * torch.randn(50)
        ...     ema.update(64 * step)
        ...     _ = ema.save_snapshots(folder)
        >>> infos = list_snapshots(folder)
        >>> unneeded, error = plan_thinning(infos, np.array([0.10]), max_error=0.01)
        >>> len(infos), len(unneeded) > 8, error <= 0.01
        (16, True, True)
    """
    model = fit_model(infos)
    before = float(predict(infos, sigma_rels, model).max())
    if not before <= max_error:
        raise ValueError(
            f"the limit must be at least what all {len(infos)} snapshots reach, {before:.1e} is"
            f" above {max_error:g}; raise --max-error or narrow the range"
        )
    order = _candidates(infos, sigma_rels, max_error, model, progress)

    def error_without(count: int) -> float:
        """Largest predicted error once the first ``count`` candidates are deleted."""
        removed = set(order[:count])
        kept = [info for i, info in enumerate(infos) if i not in removed]
        error = float(predict(kept, sigma_rels, model).max())
        if not error <= max_error:
            return error
        return max(error, float(predict(kept, sigma_rels, fit_model(kept)).max()))

    count, error = _largest_count(len(order), error_without, max_error, before)
    return [infos[i] for i in order[:count]], error


def _candidates(
    infos: Sequence[SnapshotInfo],
    sigma_rels: NDArray[np.float64],
    max_error: float,
    model: TrajectoryModel,
    progress: Callable[[int, int], None] | None,
) -> list[int]:
    """Indices of snapshots that the optimal coefficients of ``model`` can do without, in order.

    Of very many, those that no plan would use come first.
    """
    end = infos[-1].nimg
    targets = [PowerFunction.of_width(float(s), end) for s in sigma_rels]
    limit = MAX_SOURCES // 2 if len(infos) > MAX_SOURCES else None  # rounds cost time as K**4
    used = select_sources([info.profile for info in infos], limit)
    rounding = [ROUNDING[infos[i].dtype] for i in used]
    sources = [infos[i].profile for i in used]
    response, target_response, noise = responses(sources, targets, model, rounding)
    order = removal_order(
        np.concatenate([response, noise], axis=1),
        np.concatenate([target_response, np.zeros((len(targets), noise.shape[1]))], axis=1),
        [j for j, i in enumerate(used) if infos[i].nimg < end],
        max_error / model.misfit,
        progress,
    )
    unused = np.setdiff1d(np.arange(len(infos)), used)
    return [*(int(i) for i in unused if infos[i].nimg < end), *(int(used[j]) for j in order)]


def _largest_count(
    total: int, error_without: Callable[[int], float], max_error: float, before: float
) -> tuple[int, float]:
    """How many of ``total`` candidates can be deleted, by bisection, and the error then.

    Not always all of them: the candidates were found with every coefficient free, while the solver
    may prefer the coefficients of the paper.
    """
    good, bad, error = 0, total + 1, before
    while bad - good > 1:
        middle = total if bad > total else (good + bad) // 2
        found = error_without(middle)
        if found <= max_error:
            good, error = middle, found
        else:
            bad = middle
    return good, error


def claim_thinning(source: Path) -> Claim:
    """The right to delete snapshots; a run may go on writing new ones meanwhile.

    Claim it before looking which ones can be deleted.

    Args:
        source: A run, or a folder of snapshots.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If another process thins it out.

    Example:
        >>> import tempfile
        >>> with claim_thinning(Path(tempfile.mkdtemp())) as mine:
        ...     mine.path.name
        '.thinned.jsonl.lock'
    """
    folder = snapshot_folder(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder of a run")
    return claim_file(folder / THINNED)


def remove(infos: Sequence[SnapshotInfo]) -> int:
    """Delete snapshots, and record each in ``thinned.jsonl`` beside them before it goes.

    On a full disk the file goes first, and its record is written in the room that it leaves.

    Args:
        infos: Snapshots to delete.

    Returns:
        The number of bytes freed.

    Raises:
        OSError: If a file cannot be removed, or the record not be written; the error names it.

    Example:
        >>> remove([])
        0
    """
    freed = 0
    for info in infos:
        size = info.path.stat().st_size
        record = {
            "file": info.path.name,
            "nimg": info.nimg,
            "sigma_rel": info.sigma_rel,
            "gamma": info.gamma,
            "digest": info.header.digest,
        }
        log = info.path.parent / THINNED
        try:
            append_line(log, record)
            info.path.unlink()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            info.path.unlink()  # which makes room for the record of it
            append_line(log, record)
        freed += size
    return freed
