"""The paper's fit of profiles (Algorithm 3): normal equations of stored averages.

NumPy and SciPy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.formulas import inner_product
from edm2lite.ema.least_squares import Symmetric
from edm2lite.ema.profile import PowerFunction, Profile

Array = NDArray[np.float64]

_BINS = 4000  # for inner products of profiles that have no closed form


class ProfileFit:
    """Fits of profiles, all by one set of sources: the paper's normal equations.

    Args:
        sources: K stored averages.
        end: End of the targets, for integrals on a grid. None if sources and targets are power
            functions, whose inner products have a closed form.
        kinks: Times in images at which targets are not smooth.

    Example:
        >>> fit = ProfileFit([PowerFunction.of_width(s, 1000) for s in (0.05, 0.10)], end=None)
        >>> x, error = fit.fit(PowerFunction.of_width(0.07, 1000))
        >>> x.round(3), round(error, 3)
        (array([0.438, 0.562]), 0.056)
    """

    def __init__(self, sources: Sequence[Profile], end: float | None, kinks: Sequence[float] = ()):
        self._powers = [p for p in sources if isinstance(p, PowerFunction)] if end is None else []
        if end is None:
            t, gamma = np.array([(p.nimg, p.gamma) for p in self._powers], np.float64).T
            self._gram = inner_product(t[:, None], gamma[:, None], t, gamma)
        else:
            ends = [*(p.nimg for p in sources), end]
            grid = np.geomspace(min(ends) / 1000, max(ends), _BINS)
            self._edges = np.unique(np.concatenate([[0], grid, ends, kinks]))
            self._masses = np.stack([np.diff(p.cumulative(self._edges)) for p in sources])
            self._gram = self._masses @ (self._masses / np.diff(self._edges)).T
        self._norm = np.sqrt(np.diag(self._gram))
        self._system = Symmetric(self._gram / np.outer(self._norm, self._norm), cond=1e-15)

    def fit(self, target: Profile) -> tuple[Array, float]:
        """Coefficients [K] that sum to 1, and the relative L2 error of the profile."""
        right, square = self._products(target)
        x = self._system.solve(right / self._norm) / self._norm
        x = x / x.sum()
        residual = x @ (self._gram @ x) - 2 * (x @ right) + square
        return x, float(np.sqrt(max(residual, 0) / square))

    def _products(self, target: Profile) -> tuple[Array, float]:
        """Inner products of the target with the sources [K] and with itself."""
        if isinstance(target, PowerFunction) and self._powers:
            t, gamma = np.array([(p.nimg, p.gamma) for p in (*self._powers, target)], np.float64).T
            products = inner_product(t, gamma, t[-1], gamma[-1])
            return products[:-1], float(products[-1])
        masses = np.diff(target.cumulative(self._edges))
        densities = masses / np.diff(self._edges)
        return self._masses @ densities, float(masses @ densities)
