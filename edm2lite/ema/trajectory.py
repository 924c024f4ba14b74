"""How the weights of a run moved, learnt from its stored averages. NumPy only.

The weights are modelled, relative to their RMS, as a random walk whose speed changes over the run,
plus white noise whose strength changes, plus one straight drift, all independent from element to
element. With the error of the profile ``e(t) = sum_i x_i P_i(t) - P_target(t)``, where the
coefficients x sum to 1, the expected squared error of ``sum_i x_i theta_i`` is

    int walk(t) e(t)**2 dt/T + int white(t) T e'(t)**2 dt + drift (int e dt/T)**2 + rounding

and every term is a sum of squares linear in x: :meth:`TrajectoryModel.response` gives the vectors,
:meth:`TrajectoryModel.rounding_factor` those of the rounding. :func:`fit_trajectory` finds the
rates under which the differences between stored averages are the most likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.profile import PowerFunction, Profile
from edm2lite.ema.rounding import stored_rounding, tracker_rounding

Array = NDArray[np.float64]

_PIECES = 16  # equal stretches of the run, each with rates of its own
_FIT_SOURCES = 64  # stored averages that the fit looks at; the rates need no more
_FIT_STEPS = 200
_PRIOR = 0.01  # weight of a rate's neighbours in time, in contrasts; decides where data are silent
_POINTS, _POINT_WEIGHTS = (
    0.5 * (v + o) for v, o in zip(np.polynomial.legendre.leggauss(3), (1, 0), strict=True)
)


@dataclass(frozen=True)
class TrajectoryModel:
    """Rates at which the weights moved; all are variances relative to the weights' mean square.

    Attributes:
        nimg: T, the time unit of the rates: end of the latest average fitted, in images.
        first_nimg: End of the earliest average fitted. Before it the walk is faster as ``t**-1.5``.
        edges: [J - 1] times in images where the rates change.
        walk: [J] variance of the increments over a time T.
        white: [J] variance of an average over a time T of the part that forgets at once.
        drift: Variance of the straight movement over the whole run.
        bias: Share (of variance) of the tracker's largest possible systematic rounding, in [0, 1].
        updates: Updates of the float32 tracker up to ``nimg``; 0 if its rounding is left out.
        misfit: Factor >= 1 on predicted errors, above 1 if the model cannot describe the averages.
    """

    nimg: int
    first_nimg: int
    edges: Array
    walk: Array
    white: Array
    drift: float
    bias: float
    updates: int
    misfit: float

    def response(self, profiles: Sequence[Profile], quadrature: tuple[Array, Array]) -> Array:
        """[K, M] vectors: the expected squared error from movement is ``|x @ V - V_target|**2``.

        Args:
            profiles: K averages, stored or wanted.
            quadrature: (times, weights) from :func:`quadrature_nodes`, the same for all of them.
        """
        walk, white, drift = _columns(profiles, quadrature, self.nimg, self.first_nimg)
        piece = np.searchsorted(self.edges, quadrature[0])
        columns = [
            walk * np.sqrt(self.walk[piece]),
            white * np.sqrt(self.white[piece]),
            drift * np.sqrt(self.drift),
        ]
        return np.concatenate(columns, axis=1)

    def rounding_factor(
        self, sources: Sequence[PowerFunction], rounding: ArrayLike, response: Array
    ) -> Array:
        """[K, m] factor B: the expected squared error from rounding is ``|x @ B|**2``.

        Args:
            sources: K stored averages.
            rounding: [K] or scalar, relative RMS error q of the stored numbers.
            response: [K, M] of the sources.
        """
        stored = stored_rounding(rounding, response)
        random, systematic = tracker_rounding(sources, self.updates, self.nimg)
        return np.concatenate([stored, random, np.sqrt(self.bias) * systematic], axis=1)


def fit_trajectory(
    sources: Sequence[PowerFunction],
    sample: NDArray[np.float64],
    rounding: ArrayLike,
    updates: int = 0,
) -> TrajectoryModel:
    """Maximum-likelihood rates, given the same random elements of every stored average.

    The differences of the averages are rotated and scaled so that the sample covariance is the
    identity (which keeps 1e-7 of a weight in sight), and ``log det C + trace C**-1`` of the model
    covariance C is lowered by the monotone multiplicative update of variance components,
    ``c_j *= sqrt(trace(K_j C**-1 C**-1) / trace(K_j C**-1))``. It keeps rates non-negative; it is
    stopped early, which leaves components that the data cannot tell apart in equal shares.
    One average alone says nothing of movement: the walk is then assumed as large as the weights.

    Args:
        sources: K stored averages.
        sample: [K, n] values as stored of n elements drawn at random from all trained tensors,
            each tensor in its own scale; about 1e4 elements fix the rates to some percent.
        rounding: [K] or scalar, relative RMS rounding error of the stored numbers, as in
            ``edm2lite.ema.rounding.ROUNDING``.
        updates: Updates that the float32 tracker made until the latest source.

    Raises:
        ValueError: Shapes differ, values are not finite, all zero, or a rounding is negative.
    """
    sample, q = _check_sample(sources, sample, rounding, updates)
    times = np.array([s.nimg for s in sources])
    end, first = int(times.max()), int(times.min())
    unit = end / _PIECES
    edges = np.concatenate([unit * np.array([0.125, 0.25, 0.5]), unit * np.arange(1, _PIECES)])
    edges = edges[edges > first]
    pieces = len(edges) + 1
    rates, misfit = np.repeat([1.0, 0, 0, 1], [pieces, pieces, 1, 1]), 1.0
    picked = _spread(times)
    basis, measured = _whitened_differences(sample[picked])
    if len(basis):
        chosen = [sources[i] for i in picked]
        factors = _factors(chosen, q[picked], updates, end, first, edges)
        rates, misfit = _fit_rates([basis @ f for f in factors], measured, pieces)
    walk, white, (drift, bias) = np.split(rates[: 2 * pieces + 2], [pieces, 2 * pieces])
    return TrajectoryModel(
        end, first, edges, walk, white, float(drift), float(bias), updates, misfit
    )


def quadrature_nodes(times: ArrayLike, end: float) -> tuple[Array, Array]:
    """Times in (0, end) and their weights in images: Gauss-Legendre between all ``times``.

    Profiles are smooth between the ends of averages. Further breaks keep cells short compared
    with the age and with distance to the end, where the short averages live.
    """
    times = np.unique(np.append(np.asarray(times, np.float64), end))
    first = times[0]
    breaks = np.concatenate(
        [
            [0.0],
            first * np.geomspace(1 / 16, 1, 9),
            times,
            np.geomspace(first, end, 160),
            end - end * np.geomspace(1e-3, 0.1, 12),
        ]
    )
    breaks = np.unique(breaks)
    breaks = breaks[np.append(True, np.diff(breaks) > 1e-9 * end)]
    cell = np.diff(breaks)[:, None]
    return (breaks[:-1, None] + cell * _POINTS).ravel(), (cell * _POINT_WEIGHTS).ravel()


def _columns(
    profiles: Sequence[Profile], quadrature: tuple[Array, Array], nimg: float, first: float
) -> tuple[Array, Array, Array]:
    """Walk [K, M], white [K, M] and drift [K, 1] vectors of profiles at unit rates."""
    u, w = quadrature
    after = np.stack([1 - p.cumulative(u) for p in profiles])
    step = 1e-3 * w  # far smaller than the distance of a node from any end of an average
    density = [(p.cumulative(u + step) - p.cumulative(u - step)) / (2 * step) for p in profiles]
    # Training moves fastest at the start, which no stored average shows; the power is from runs.
    walk = after * np.sqrt(w / nimg * np.maximum(1, first / u) ** 1.5)
    white = np.stack(density) * np.sqrt(w * nimg)
    return walk, white, (after @ w / nimg)[:, None]


def _factors(
    sources: Sequence[PowerFunction], q: Array, updates: int, end: int, first: int, edges: Array
) -> list[Array]:
    """Factors [K, .] at unit rates: walk and white by piece, drift, bias, and last known noise."""
    quadrature = quadrature_nodes([s.nimg for s in sources], end)
    walk, white, drift = _columns(sources, quadrature, end, first)
    random, systematic = tracker_rounding(sources, updates, end)
    piece = np.searchsorted(edges, quadrature[0])
    pieces = [piece == j for j in range(len(edges) + 1)]
    noise = np.concatenate([np.diag(q), random], axis=1)
    return [walk[:, p] for p in pieces] + [white[:, p] for p in pieces] + [drift, systematic, noise]


def _spread(times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of about ``_FIT_SOURCES`` averages at most: the latest in a row, the rest spread."""
    ends = np.unique(times)
    count = max(2, _FIT_SOURCES * len(ends) // len(times))
    if len(ends) <= count:
        return np.arange(len(times))
    late, early = ends[-count // 2 :], ends[: -count // 2]
    spread = early[np.unique(np.linspace(0, len(early) - 1, count - len(late)).astype(int))]
    return np.flatnonzero(np.isin(times, np.concatenate([spread, late])))


def _whitened_differences(sample: Array) -> tuple[Array, Array]:
    """(B [k, K], covariance [k, k]) with rows of B summing to 0 and covariance ~ identity."""
    n = sample.shape[1]
    left, size, _ = np.linalg.svd(np.diff(sample, axis=0) / np.sqrt(n), full_matrices=False)
    if not len(size):
        return np.zeros((0, len(sample))), np.zeros((0, 0))
    floor = np.sqrt(size**2 + (1e-9 * size[0]) ** 2 + 1e-20)
    return (left / floor).T @ np.diff(np.eye(len(sample)), axis=0), np.diag((size / floor) ** 2)


def _fit_rates(factors: list[Array], measured: Array, pieces: int) -> tuple[Array, float]:
    """Rates of all factors but the last, which is noise of known strength, and the misfit."""
    k = len(measured)
    kernels = np.stack([f @ f.T for f in factors])
    trace = np.trace(kernels, axis1=1, axis2=2)
    families = [slice(0, pieces), slice(pieces, 2 * pieces), slice(2 * pieces, 2 * pieces + 1)]
    rates = np.ones(len(factors))
    for family in families:  # equal shares of the variance to start from
        total = trace[family].sum()
        rates[family] = k / (len(families) + 2) / total if total > 0 else 0
    # Systematic rounding of the tracker: several tracked lengths show how much there is, but that
    # of one length alone looks like drift, so half the most there can be is assumed.
    rates[-2] = 0.25 if factors[-2].shape[1] == 1 else 0.01
    flat = kernels.reshape(len(kernels), -1)
    for _ in range(_FIT_STEPS):
        inverse = _inverse((rates @ flat).reshape(k, k))
        gain = flat @ (inverse @ measured @ inverse).ravel()
        cost = flat @ inverse.ravel()
        around = rates.copy()
        for family in families:
            around[family] = _neighbours(rates[family])
        ratio = np.divide(around, rates, out=np.zeros_like(rates), where=rates > 0)
        rates = rates * np.sqrt(
            (np.maximum(gain, 0) * rates + _PRIOR * ratio) / (np.maximum(cost, 0) * rates + _PRIOR)
        )
        rates[-2] = min(rates[-2], 1)
        rates[-1] = 1
    explained = _inverse((rates @ flat).reshape(k, k)) @ measured
    # A true model has mean square 1 here. Above 4 the covariance itself is of the wrong shape.
    mean_square = float(np.sum(explained * explained.T)) / k
    return rates, max(1.0, np.sqrt(mean_square) / 2)


def _inverse(covariance: Array) -> Array:
    lower = np.linalg.cholesky(covariance + 1e-12 * np.eye(len(covariance)))
    half = np.linalg.inv(lower)
    return half.T @ half


def _neighbours(rates: Array) -> Array:
    """Geometric mean of the rates before and after each; at an end, of the one there is."""
    if len(rates) < 2:
        return rates
    padded = np.concatenate([rates[1:2], rates, rates[-2:-1]])
    return np.sqrt(padded[:-2]) * np.sqrt(padded[2:])


def _check_sample(
    sources: Sequence[PowerFunction], sample: NDArray[np.float64], rounding: ArrayLike, updates: int
) -> tuple[Array, Array]:
    """(sample over the RMS of the latest average, rounding [K]), both float64."""
    if not sources:
        raise ValueError("need at least 1 stored average to learn from, got none")
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
