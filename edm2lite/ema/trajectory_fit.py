"""Fits the model of how the weights of a run moved to its stored averages.

:func:`fit_trajectory` finds the rates of :class:`edm2lite.ema.trajectory.TrajectoryModel` under
which the differences between the stored averages are the most likely. NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from edm2lite.ema.blas import on_one_thread
from edm2lite.ema.likelihood import balanced_rates, deviance, fit_rates, misfit_of
from edm2lite.ema.profile import Stored, kinks
from edm2lite.ema.quadrature import quadrature_nodes
from edm2lite.ema.rounding import tracker_rounding
from edm2lite.ema.trajectory import TrajectoryModel, profile_shapes, unit_responses

Array = NDArray[np.float64]

_PIECES = 16  # equal pieces of the run, each with rates of its own
_FIT_SOURCES = 64  # number of stored averages used for the fit; the rates need no more
_ROW = 16  # consecutive moments among them, which show movement over short times
_MOMENTA = (0.0, 0.001, 0.002, 0.004, 0.006, 0.009, 0.014)  # fractions of the run
_CLEAR = 0.06  # gain of 2 / n log likelihood below which no momentum is assumed
_TRY_STEPS, _FIT_STEPS, _ROUNDS = 60, 50, 4
_EVIDENCE = 4  # independent elements that the likelihood counts; models are never quite true
_UNEXPLAINED = 1e-3  # share of measured variances that a rival need not explain


@on_one_thread
def fit_trajectory(
    sources: Sequence[Stored],
    sample: NDArray[np.float64],
    rounding: ArrayLike,
    updates: int = 0,
) -> TrajectoryModel:
    """The trajectory model under which a sample of the stored averages is the most likely.

    The differences of the averages are rotated and scaled so that their sample covariance is the
    identity (which keeps movements of 1e-7 of a weight visible). The rates are then found by
    :func:`edm2lite.ema.likelihood.fit_rates`. A momentum is chosen from a small grid if it makes
    the sample clearly more likely; there is no white noise then. The rounding of the tracker
    depends on the rates, so both are determined in turn. A second history, in which the weights
    are at rest after the last snapshot but one, is fitted in the same way, and remains in doubt
    unless the averages tell the two apart. A single average says nothing about movement: the walk
    is then assumed to be as large as the weights.

    Args:
        sources: K stored averages.
        sample: [K, n] stored values of n elements drawn at random from all trained tensors, each
            tensor in its own scale. About 1e4 elements determine the rates to some percent.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers, as in
            :data:`edm2lite.ema.rounding.ROUNDING`.
        updates: Number of updates of the float32 tracker up to the latest source.

    Raises:
        ValueError: If shapes do not match, values are not finite or all zero, or ``rounding`` or
            ``updates`` is out of range.

    Example:
        >>> from edm2lite.ema.profile import PowerFunction
        >>> ends = [100 * k for k in range(1, 11)]
        >>> sources = [PowerFunction.of_width(0.10, end) for end in ends]
        >>> rng = np.random.default_rng(0)
        >>> walk = 10 + np.cumsum(rng.standard_normal((1000, 200)), axis=0) / 1000**0.5
        >>> shares = [np.diff(s.cumulative(np.arange(1001))) for s in sources]  # of each step
        >>> model = fit_trajectory(sources, shares @ walk, rounding=0.0)
        >>> bool(model.walk.mean() > 0) and model.momentum
        0.0
    """
    sample, q = _check_sample(sources, sample, rounding, updates)
    times = np.array([s.nimg for s in sources])
    chosen = spread(times)
    basis, measured = _whitened_differences(sample[chosen])
    data = _Differences([sources[i] for i in chosen], basis, q[chosen], updates, times)
    if not len(basis):
        return data.model(np.repeat([1.0, 0.0], [data.pieces, 2 * data.pieces + 1]), 0.0)
    momentum, kernels, rates = _likely_momentum(data, measured)
    noise = data.noise(moved=0.0)  # systematic rounding, unless the rates turn out to be too large
    for _ in range(_ROUNDS):
        rates = fit_rates(kernels, noise, measured, rates, _FIT_STEPS)
        noise = data.noise(*data.model(rates, momentum).changes()) if updates else noise
    covariance = np.tensordot(rates, kernels, 1) + noise
    model = replace(
        data.model(rates, momentum),
        misfit=misfit_of(basis, covariance, measured),
        fitted=tuple(sources),
        sample=sample,
    )
    return _with_rival(model, data, rates, noise, measured, deviance(covariance, measured))


def _with_rival(
    model: TrajectoryModel,
    data: _Differences,
    rates: Array,
    noise: Array,
    measured: Array,
    fit: float,
) -> TrajectoryModel:
    """The model, in doubt whether the weights are at rest after the last snapshot but one.

    Learning rates often fall to zero, and averages of one length hardly show how far the weights
    moved since. The doubt is the posterior probability of rest; its prior is one half.

    Args:
        model: The model that was fitted, with ``rates`` and rounding ``noise`` [k, k].
        data: The differences of the averages.
        rates: [3 J + 1] to start from.
        noise: [k, k] covariance of the rounding errors.
        measured: [k, k] covariance of the differences in the sample.
        fit: Deviance of ``model``.
    """
    if data.last_but_one == model.nimg:
        return model
    momentum = model.momentum / model.nimg
    kernels = data.kernels(momentum, data.last_but_one)
    noise = noise + _UNEXPLAINED * np.eye(len(noise))
    rates = fit_rates(kernels, noise, measured, rates, _FIT_STEPS)
    covariance = np.tensordot(rates, kernels, 1) + noise
    worse = deviance(covariance, measured) - fit
    doubt = float(expit(-_EVIDENCE / 2 * worse))
    if doubt < 1e-3:
        return model
    misfit = misfit_of(data.basis, covariance, measured)
    return replace(
        model,
        rival=replace(data.model(rates, momentum), stop=data.last_but_one),
        doubt=doubt,
        misfit=float(np.sqrt((1 - doubt) * model.misfit**2 + doubt * misfit**2)),
    )


class _Differences:
    """Covariances [k, k] of the differences ``basis @ averages`` under the models considered."""

    def __init__(
        self,
        sources: Sequence[Stored],
        basis: Array,
        q: Array,
        updates: int,
        times: NDArray[np.int64],
    ):
        self._sources, self.basis, self._q, self._updates = sources, basis, q, updates
        self._end, self._first = int(times.max()), int(times.min())
        self.last_but_one = int(np.unique(times)[-2:][0])
        unit = self._end / _PIECES
        later = np.concatenate([unit * np.array([0.125, 0.25, 0.5]), unit * np.arange(1, _PIECES)])
        early = self._first * np.array([0.25, 0.5, 1])
        self._edges = np.concatenate([early, later[later > self._first]])
        self.pieces = len(self._edges) + 1
        breaks = [t for s in sources for t in kinks(s)]
        self._nodes = quadrature_nodes([s.nimg for s in sources], self._end, breaks)
        self._shapes = profile_shapes(sources, self._nodes)

    def kernels(self, momentum: float, stop: float = np.inf) -> Array:
        """Covariances [3 J + 1, k, k] at unit rates: walk, white, excursion by piece, and drift.

        Args:
            momentum: Time over which movements are smooth, as a fraction of the run.
            stop: Time in images after which no movement begins.
        """
        *families, drift = unit_responses(
            *self._shapes, self._nodes, self._end, self._first, momentum * self._end, stop
        )
        piece = np.searchsorted(self._edges, self._nodes[0])
        parts = [family[:, piece == j] for family in families for j in range(self.pieces)]
        factors = [self.basis @ part for part in (*parts, drift)]
        return np.stack([factor @ factor.T for factor in factors])

    def noise(self, lags: ArrayLike = 1.0, moved: ArrayLike = 1.0) -> Array:
        """Covariance [k, k] of the rounding errors.

        Args:
            lags: [L] numbers of updates.
            moved: [L] expected squared change of the weights over so many updates.
        """
        factor = np.diag(self._q)
        if self._updates:
            lags, moved = np.atleast_1d(lags), np.atleast_1d(moved)
            tracked = tracker_rounding(self._sources, self._updates, self._end, lags, moved)
            factor = np.concatenate([factor, tracked], axis=1)
        factor = self.basis @ factor
        covariance: Array = factor @ factor.T
        return covariance

    def model(self, rates: Array, momentum: float) -> TrajectoryModel:
        """The model with these rates [3 J + 1]."""
        walk, white, excursion, drift = np.split(rates, self.pieces * np.arange(1, 4))
        return TrajectoryModel(
            self._end,
            self._first,
            self._edges,
            walk,
            white,
            excursion,
            float(drift[0]),
            momentum * self._end,
            self._updates,
        )


def _likely_momentum(data: _Differences, measured: Array) -> tuple[float, Array, Array]:
    """(momentum, kernels, first rates); the momentum is 0 unless another is clearly more likely."""
    noise = data.noise()
    kernels = np.stack([data.kernels(momentum) for momentum in _MOMENTA])
    start = np.stack([balanced_rates(k, m > 0) for k, m in zip(kernels, _MOMENTA, strict=True)])
    rates = fit_rates(kernels, noise, measured, start, _TRY_STEPS)
    deviances = [
        deviance(np.tensordot(r, k, 1) + noise, measured)
        for r, k in zip(rates, kernels, strict=True)
    ]
    best = int(np.argmin(deviances))
    best = best if deviances[best] < deviances[0] - _CLEAR else 0
    return _MOMENTA[best], kernels[best], rates[best]


def spread(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of the averages that a fit uses: up to about 64, in rows of moments over the run.

    Of these, it chooses all again.

    Args:
        times: [K] ends of the averages in images.

    Example:
        >>> len(spread(np.arange(1, 1001))), spread(np.array([64, 64, 128]))
        (64, array([0, 1, 2]))
    """
    ends = np.unique(times)
    count = max(2, _FIT_SOURCES * len(ends) // len(times))
    if len(ends) <= count:
        return np.arange(len(times))
    rows = max(2, count // _ROW)
    length = count // rows
    starts = np.linspace(0, len(ends) - length, rows).astype(int)
    moments = ends[np.unique(starts[:, None] + np.arange(length))]
    return np.flatnonzero(np.isin(times, moments))


def _whitened_differences(sample: Array) -> tuple[Array, Array]:
    """Differences of averages with a sample covariance close to the identity.

    Args:
        sample: [K, n] values of K averages.

    Returns:
        B [k, K], rows of which sum to 0, and the sample covariance [k, k] of ``B @ averages``.
    """
    n = sample.shape[1]
    # The singular values of a matrix are those of its triangular factor, which is small.
    triangle = np.asarray(np.linalg.qr(np.diff(sample, axis=0).T / np.sqrt(n), mode="r")).T
    left, size, _ = np.linalg.svd(triangle, full_matrices=False)
    if not len(size):
        return np.zeros((0, len(sample))), np.zeros((0, 0))
    floor = np.sqrt(size**2 + (1e-9 * size[0]) ** 2 + 1e-20)
    return (left / floor).T @ np.diff(np.eye(len(sample)), axis=0), np.diag((size / floor) ** 2)


def _check_sample(
    sources: Sequence[Stored], sample: NDArray[np.float64], rounding: ArrayLike, updates: int
) -> tuple[Array, Array]:
    """The sample divided by the RMS of the latest average, and ``rounding`` as [K]."""
    if not sources:
        raise ValueError("need at least 1 stored average to fit the model to, got none")
    sample = np.asarray(sample, np.float64)
    if sample.ndim != 2 or len(sample) != len(sources) or not sample.shape[1]:
        raise ValueError(
            f"sample must be [K = {len(sources)}, n >= 1], one row per stored average, got shape"
            f" {sample.shape}"
        )
    if not np.isfinite(sample).all():
        bad = np.flatnonzero(~np.isfinite(sample).all(axis=1))
        raise ValueError(f"sample must be finite, rows {bad.tolist()} are not; leave them out")
    q = np.array(np.broadcast_to(np.asarray(rounding, np.float64), len(sources)))
    if not np.all((q >= 0) & (q < 1)):
        raise ValueError(
            f"rounding must be relative errors in [0, 1), got {q}; float16 has 2.05e-4"
        )
    if updates < 0:
        raise ValueError(f"updates must be 0 or the number of tracker updates, got {updates}")
    latest = int(np.argmax([s.nimg for s in sources]))
    rms = np.sqrt(np.mean(sample[latest] ** 2))
    if not rms > 0:
        raise ValueError(f"sample must not be all zero, row {latest} is; draw other elements")
    return sample / rms, q
