"""How the weights of a run moved, as far as its averages tell.

The weights are modelled, relative to their RMS, as sums of independent movements, independent from
element to element, whose strengths change over the run:

- a walk: increments that are never forgotten;
- excursions, forgotten over a few percent of the run, as around an optimum that holds them back;
- white noise, forgotten at once;
- one straight drift.

All but the drift have passed a momentum m, as that of an optimizer, which makes them smooth over
shorter times. With the error of the profile ``e(t) = sum_i x_i P_i(t) - P_target(t)``, where the
coefficients x sum to 1, and with f' for f after :func:`edm2lite.ema.quadrature.remembered` with the
memory m, the expected squared error of ``sum_i x_i theta_i`` is

    int walk(t) e'(t)**2 dt/T + int white(t) T (de/dt)'(t)**2 dt + the same with excursions
    + drift (int e dt/T)**2 + rounding

and every term is a sum of squares linear in x: :meth:`TrajectoryModel.response` gives the vectors,
:meth:`TrajectoryModel.rounding_factor` those of the rounding. NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.profile import PowerFunction, Profile, Window
from edm2lite.ema.quadrature import quadrature_nodes, remembered
from edm2lite.ema.rounding import stored_rounding, tracker_rounding

Array = NDArray[np.float64]

EXCURSION = 0.03
"""Time over which an excursion is forgotten, of the run."""


@dataclass(frozen=True)
class TrajectoryModel:
    """Rates at which the weights moved; all are variances relative to the weights' mean square.

    Attributes:
        nimg: T, the time unit of the rates: end of the latest average fitted, in images.
        first_nimg: End of the earliest average fitted. Before it the walk is faster as ``1 / t``.
        edges: [J - 1] times in images where the rates change.
        walk: [J] variance of the increments over a time T.
        white: [J] variance of an average over a time T of the part that forgets at once.
        excursion: [J] the same of the part that forgets over ``EXCURSION`` of T.
        drift: Variance of the straight movement over the whole run.
        momentum: Time in images over which movements are smooth; 0 for none.
        updates: Updates of the float32 tracker up to ``nimg``; 0 if its rounding is left out.
        misfit: Factor >= 1 on predicted errors, above 1 if the model cannot describe the averages.
    """

    nimg: int
    first_nimg: int
    edges: Array
    walk: Array
    white: Array
    excursion: Array
    drift: float = 0.0
    momentum: float = 0.0
    updates: int = 0
    misfit: float = 1.0

    def response(self, profiles: Sequence[Profile], quadrature: tuple[Array, Array]) -> Array:
        """[K, M] vectors: the expected squared error from movement is ``|x @ V - V_target|**2``.

        Args:
            profiles: K averages, stored or wanted.
            quadrature: (times, weights) from :func:`quadrature_nodes`, the same for all of them.
        """
        *families, drift = unit_responses(
            *shapes(profiles, quadrature), quadrature, self.nimg, self.first_nimg, self.momentum
        )
        piece = np.searchsorted(self.edges, quadrature[0])
        rates = (self.walk, self.white, self.excursion)
        moved = [
            family * np.sqrt(rate[piece])
            for family, rate in zip(families, rates, strict=True)
            if rate.any()
        ]
        return np.concatenate([*moved, drift * np.sqrt(self.drift)], axis=1)

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
        if not self.updates:
            return stored
        tracked = tracker_rounding(sources, self.updates, self.nimg, *self.changes())
        return np.concatenate([stored, tracked], axis=1)

    def changes(self) -> tuple[Array, Array]:
        """Numbers of updates before the end, and the squared change of the weights over as many.

        Without the drift, which an average follows.
        """
        stride = self.nimg / self.updates
        lags = np.unique(np.round(np.geomspace(1, max(1, self.updates / 2), 24)))
        ends = self.nimg - stride * np.append(0, lags)
        ends = ends[ends > 0.5 * stride]
        if len(ends) < 2:
            return np.ones(1), np.zeros(1)
        held = [Window(0.999 * stride, end) for end in ends]  # the weights of one update
        times = np.concatenate([ends, ends - 0.999 * stride])
        response = self.response(held, quadrature_nodes(times[times > 0], self.nimg))[:, :-1]
        return lags[: len(ends) - 1], ((response[1:] - response[0]) ** 2).sum(axis=1)


def shapes(profiles: Sequence[Profile], quadrature: tuple[Array, Array]) -> tuple[Array, Array]:
    """What of each profile lies after the nodes, and its density there, each [K, M]."""
    u, w = quadrature
    after = np.stack([1 - p.cumulative(u) for p in profiles])
    step = 1e-3 * w  # far smaller than the distance of a node from any end of an average
    density = np.stack(
        [(p.cumulative(u + step) - p.cumulative(u - step)) / (2 * step) for p in profiles]
    )
    return after, density


def unit_responses(
    after: Array,
    density: Array,
    quadrature: tuple[Array, Array],
    nimg: float,
    first: float,
    momentum: float,
) -> tuple[Array, Array, Array, Array]:
    """Walk, white, excursion [K, M] and drift [K, 1] vectors of :func:`shapes` at unit rates."""
    u, w = quadrature
    drift = (after @ w / nimg)[:, None]
    if momentum:
        after, density = np.split(remembered(np.concatenate([after, density]), w, momentum), 2)
    # Training moves fastest at the start, which no stored average shows: the variance falls as the
    # square of a learning rate that falls as t**-0.5.
    walk = after * np.sqrt(w / nimg * np.maximum(1, first / u))
    white = density * np.sqrt(w * nimg)
    excursion = remembered(density, w, EXCURSION * nimg) * np.sqrt(w * nimg)
    return walk, white, excursion, drift
