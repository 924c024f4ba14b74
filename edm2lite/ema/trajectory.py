"""A statistical model of how the weights of a run moved.

Relative to their RMS, the weights are modeled as a sum of independent movements, independent from
element to element, whose strengths change over the run:

- a random walk: increments that persist;
- excursions that decay over a few percent of the run, as around an optimum that pulls weights back;
- white noise, which decays at once;
- a straight drift.

All but the drift are smoothed by a momentum m, as that of an optimizer. Let the error of the
profile be ``e(t) = sum_i x_i P_i(t) - P_target(t)``, with coefficients x that sum to 1, and let f'
denote f after :func:`edm2lite.ema.quadrature.lookahead_mean` with the memory m. Then the expected
squared error of ``sum_i x_i theta_i`` is

    int walk(t) e'(t)**2 dt/T + int white(t) T (de/dt)'(t)**2 dt + (likewise for excursions)
    + drift (int e dt/T)**2 + rounding

where every term is a square of something linear in x. If the averages leave open whether the
weights moved at all since the last snapshot but one, the expected squares of both histories are
averaged. :meth:`TrajectoryModel.response` gives these
vectors, and :meth:`TrajectoryModel.rounding_factor` those of the rounding. NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edm2lite.ema.profile import Profile, Stored, Window
from edm2lite.ema.quadrature import lookahead_mean, quadrature_nodes
from edm2lite.ema.rounding import stored_rounding, tracker_rounding

Array = NDArray[np.float64]

EXCURSION = 0.03
"""Time over which an excursion decays, as a fraction of the run."""


@dataclass(frozen=True)
class TrajectoryModel:
    """Rates at which the weights moved: variances relative to the mean square of the weights.

    Attributes:
        nimg: T, the time unit of the rates: end of the latest average fitted, in images.
        first_nimg: End of the earliest average fitted. Before it the walk is faster, as ``1 / t``.
        edges: [J - 1] times in images at which the rates change.
        walk: [J] variance of the increments of the walk over a time T.
        white: [J] variance of the mean of the white noise over a time T.
        excursion: [J] variance of the mean of the excursions over a time T.
        drift: Variance of the straight movement over the whole run.
        momentum: Time in images over which movements are smooth; 0 for none.
        updates: Updates of the float32 tracker up to ``nimg``; 0 leaves out their rounding.
        misfit: Factor >= 1 on predicted errors, above 1 if the model cannot describe the averages.
        stop: Time in images from which on the weights are at rest.
        rival: Another history that explains the averages, or None.
        doubt: Probability of ``rival``; expected squares are the mean of both histories.
        fitted: Averages with known values, those behind the fit among them.
        sample: [K, n] values of the averages ``fitted``, relative to the RMS of the weights.

    Example:
        >>> one, none = np.ones(1), np.zeros(1)
        >>> walk = TrajectoryModel(1000, 100, np.zeros(0), one, none, none)  # nothing but a walk
        >>> ends = [Window(1e-6, 500), Window(1e-6, 1000)]  # the weights at two moments
        >>> v = walk.response(ends, quadrature_nodes([500, 1000], 1000))
        >>> round(float(((v[1] - v[0]) ** 2).sum()), 3)  # half of the run apart
        0.5
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
    stop: float = np.inf
    rival: TrajectoryModel | None = None
    doubt: float = 0.0
    fitted: Sequence[Stored] = ()
    sample: Array | None = field(default=None, repr=False)

    def response(self, profiles: Sequence[Profile], quadrature: tuple[Array, Array]) -> Array:
        """Vectors V [K, M] such that the error from movement is ``|x @ V - V_target|**2``.

        Args:
            profiles: K averages, sources or targets.
            quadrature: (times, weights) of :func:`quadrature_nodes`, one for sources and targets.
        """
        shapes = profile_shapes(profiles, quadrature)
        own = self._response(shapes, quadrature)
        if self.rival is None:
            return own
        other = self.rival._response(shapes, quadrature)
        return np.concatenate([np.sqrt(1 - self.doubt) * own, np.sqrt(self.doubt) * other], axis=1)

    def _response(self, shapes: tuple[Array, Array], quadrature: tuple[Array, Array]) -> Array:
        """The vectors of :meth:`response` for this history alone; the last one is the drift."""
        *families, drift = unit_responses(
            *shapes, quadrature, self.nimg, self.first_nimg, self.momentum, self.stop
        )
        piece = np.searchsorted(self.edges, quadrature[0])
        rates = (self.walk, self.white, self.excursion)
        moved = [
            family * np.sqrt(rate[piece])
            for family, rate in zip(families, rates, strict=True)
            if rate.any()
        ]
        return np.concatenate([*moved, drift * np.sqrt(self.drift)], axis=1)

    def measured(self, sources: Sequence[Stored], combinations: Array) -> Array | None:
        """RMS [R] of combinations of the averages in the sample, relative to that of the weights.

        Args:
            sources: K stored averages.
            combinations: [K, R] coefficients; columns sum to 0.

        Returns:
            None if an average was not part of the fit.
        """
        row = {source: i for i, source in enumerate(self.fitted)}
        if self.sample is None or any(source not in row for source in sources):
            return None
        sample = self.sample[[row[source] for source in sources]]
        values = (x @ sample for x in np.ascontiguousarray(combinations.T))
        return np.array([np.sqrt(np.mean(v**2)) for v in values])

    def with_sample(
        self, sources: Sequence[Stored], sample: NDArray[np.float64]
    ) -> TrajectoryModel:
        """This model with the values of more averages than it was fitted to.

        Args:
            sources: K stored averages, by time.
            sample: [K, n] their values.
        """
        scale = np.sqrt(np.mean(sample[int(np.argmax([s.nimg for s in sources]))] ** 2))
        return replace(self, fitted=tuple(sources), sample=sample / scale)

    def rounding_factor(
        self, sources: Sequence[Stored], rounding: ArrayLike, response: Array
    ) -> Array:
        """Factor B [K, m] such that the expected squared error from rounding is ``|x @ B|**2``.

        Args:
            sources: K stored averages.
            rounding: [K] or scalar, relative RMS error q of the stored numbers.
            response: [K, M] vectors of the sources, from :meth:`response`.
        """
        stored = stored_rounding(rounding, response)
        if not self.updates:
            return stored
        tracked = tracker_rounding(sources, self.updates, self.nimg, *self.changes())
        return np.concatenate([stored, tracked], axis=1)

    def changes(self) -> tuple[Array, Array]:
        """Expected squared change of the weights over some numbers of updates before the end.

        The drift is left out, since averages follow it.

        Returns:
            Numbers of updates [L], increasing from 1, and the changes [L].
        """
        stride = self.nimg / self.updates
        lags = np.unique(np.round(np.geomspace(1, max(1, self.updates / 2), 24)))
        ends = self.nimg - stride * np.append(0, lags)
        ends = ends[ends > 0.5 * stride]
        if len(ends) < 2:
            return np.ones(1), np.zeros(1)
        held = [Window(0.999 * stride, end) for end in ends]  # weights of one update
        times = np.concatenate([ends, ends - 0.999 * stride])
        nodes = quadrature_nodes(times[times > 0], self.nimg)
        response = self._response(profile_shapes(held, nodes), nodes)[:, :-1]
        return lags[: len(ends) - 1], ((response[1:] - response[0]) ** 2).sum(axis=1)


def profile_shapes(
    profiles: Sequence[Profile], quadrature: tuple[Array, Array]
) -> tuple[Array, Array]:
    """Weight of each profile after the nodes, and its density at the nodes.

    Args:
        profiles: K averages.
        quadrature: (times [M], weights [M]) of :func:`quadrature_nodes`.

    Returns:
        Weight after each node and density in 1 / images, both [K, M].

    Example:
        >>> nodes = quadrature_nodes([1000], 1000)
        >>> after, density = profile_shapes([Window(1000, 1000)], nodes)
        >>> bool(np.allclose(after, 1 - nodes[0] / 1000)), bool(np.allclose(density, 1e-3))
        (True, True)
    """
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
    stop: float = np.inf,
) -> tuple[Array, Array, Array, Array]:
    """Vectors of the walk, white noise, excursions [K, M] and drift [K, 1] at unit rates.

    Args:
        after: [K, M] from :func:`profile_shapes`.
        density: [K, M] from :func:`profile_shapes`.
        quadrature: (times [M], weights [M]) of :func:`quadrature_nodes`.
        nimg: T, the time unit of the rates.
        first: Time in images before which the walk is faster.
        momentum: Time in images over which movements are smooth; 0 for none.
        stop: Time in images after which no movement begins.
    """
    u, w = quadrature
    moves = u < stop
    drift = (after @ (moves * w) / nimg)[:, None]
    if momentum:
        after, density = np.split(lookahead_mean(np.concatenate([after, density]), w, momentum), 2)
    # Training moves fastest at the start, which no stored average shows: the variance falls as the
    # square of a learning rate that falls as t**-0.5.
    walk = after * np.sqrt(moves * w / nimg * np.maximum(1, first / u))
    white = density * np.sqrt(moves * w * nimg)
    excursion = lookahead_mean(density, w, EXCURSION * nimg) * np.sqrt(moves * w * nimg)
    return walk, white, excursion, drift
