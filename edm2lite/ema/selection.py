"""Which of very many stored averages to rebuild others from: as many as matter, and no more.

Coefficients for K averages cost time as K**3 and memory as K**2, and whoever rebuilds an average
from K files reads all of them. What an average of the power function needs is dense near its end
(short lengths) and near the start of the run (long ones); elsewhere, neighbors tell the same.
NumPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.profile import Stored

MAX_SOURCES = 512
"""Largest number of stored averages that coefficients are computed for."""


def select_sources(sources: Sequence[Stored], max_sources: int | None = None) -> NDArray[np.intp]:
    """Indices of at most ``max_sources`` stored averages, all of them if there are no more.

    Neighbors of one length are at most ``c min(t, T - t)`` apart, or adjacent, with the time t, the
    end T of the latest average and the smallest c that gives no more than the limit. The first and
    the last average of each length are always among them. The predicted error of a power-function
    average is then within 5 % of that from all K averages, or below 1e-4, which is half of what
    rounding to float16 adds. (Measured for K up to 2000.)

    Args:
        sources: K stored averages.
        max_sources: Limit, at least twice the number of lengths. [default: MAX_SOURCES]

    Returns:
        Increasing indices into ``sources``. The choice depends on nothing but their times.

    Example:
        >>> from edm2lite.ema.profile import PowerFunction
        >>> stored = [PowerFunction(7.0, nimg) for nimg in range(1, 1001)]
        >>> chosen = select_sources(stored, 50)
        >>> len(chosen), chosen[:4], chosen[-4:]
        (50, array([0, 1, 2, 3]), array([996, 997, 998, 999]))
    """
    max_sources = MAX_SOURCES if max_sources is None else max_sources
    if len(sources) <= max_sources:
        return np.arange(len(sources))
    times = np.array([s.nimg for s in sources], np.float64)
    gammas = np.array([s.gamma for s in sources])
    tracks = []
    for gamma in np.unique(gammas):
        track = np.flatnonzero(gammas == gamma)
        tracks.append(track[np.argsort(times[track], kind="stable")])
    end, low, high = times.max(), 0.0, 1.0
    chosen = [_thinned(times[track], end, high) for track in tracks]
    for _ in range(20):
        spacing = (low + high) / 2
        trial = [_thinned(times[track], end, spacing) for track in tracks]
        if sum(map(len, trial)) <= max_sources:
            high, chosen = spacing, trial
        else:
            low = spacing
    return np.sort(np.concatenate([t[c] for t, c in zip(tracks, chosen, strict=True)]))


def _thinned(times: NDArray[np.float64], end: float, spacing: float) -> NDArray[np.intp]:
    """Indices of increasing times such that neighbors are as far apart as ``spacing`` allows."""
    reach = times + spacing * np.minimum(times, end - times)  # increases, as spacing <= 1
    chosen = [len(times) - 1]
    while (last := chosen[-1]) > 0:
        chosen.append(min(last - 1, int(np.searchsorted(reach, times[last]))))
    return np.array(chosen[::-1])
