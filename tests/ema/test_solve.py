"""The paper's solve against published coefficients and 50-digit arithmetic."""

import mpmath
import numpy as np
import pytest

from edm2lite.ema.profile import PowerFunction, sigma_rel_to_gamma
from edm2lite.ema.solve import solve_paper


def pairs(times, widths=(0.05, 0.10)):
    return [PowerFunction.of_width(s, t) for s in widths for t in times]


def test_coefficients_are_the_published_ones():
    x = solve_paper(pairs([1, 2, 3, 4]), [PowerFunction.of_width(0.13, 4)]).coefficients[:, 0]
    published = np.array(
        [-0.000094, -0.004547, -0.041489, -0.194596, 0.000386, 0.014436, 0.112742, 1.092710]
    )
    np.testing.assert_allclose(x * 0.97954771, published, atol=1e-6)


def test_coefficients_equal_fifty_digit_arithmetic():
    sources, target = pairs(range(1, 17)), PowerFunction.of_width(0.03, 16)
    with mpmath.workdps(50):

        def inner(a, b):
            low, high = (a, b) if a.nimg <= b.nimg else (b, a)
            ga, gb = mpmath.mpf(low.gamma), mpmath.mpf(high.gamma)
            ratio = mpmath.mpf(low.nimg) / high.nimg
            return (ga + 1) * (gb + 1) * ratio**gb / ((ga + gb + 1) * high.nimg)

        gram = mpmath.matrix(len(sources), len(sources))
        for i, a in enumerate(sources):
            for j, b in enumerate(sources):
                gram[i, j] = inner(a, b)
        right = mpmath.matrix([inner(a, target) for a in sources])
        x = mpmath.lu_solve(gram, right)
        exact = np.array([float(v / mpmath.fsum(x)) for v in x])
    got = solve_paper(sources, [target]).coefficients[:, 0]
    # condition number about 1e4 of the scaled Gram matrix, times rounding 1e-16
    np.testing.assert_allclose(got, exact, rtol=1e-8, atol=1e-10)


def test_a_stored_length_is_its_own_answer():
    sources = pairs(range(1, 33))
    solution = solve_paper(sources, [sources[-1], sources[31]])
    expected = np.zeros((64, 2))
    expected[-1, 0] = expected[31, 1] = 1
    np.testing.assert_allclose(solution.coefficients, expected, atol=1e-7)
    assert solution.profile_error.max() < 1e-6


@pytest.mark.parametrize(
    "n, sigma_rel, squared",
    [(8, 0.13, 3.8e-4), (32, 0.03, 1.2e-4), (64, 0.07, 6e-8), (32, 0.2, 4.1e-5)],
)
def test_profile_error_is_the_published_one(n, sigma_rel, squared):
    solution = solve_paper(pairs(range(1, n + 1)), [PowerFunction.of_width(sigma_rel, n)])
    assert solution.profile_error[0] ** 2 == pytest.approx(squared, rel=0.1)


def test_coefficients_sum_to_one():
    solution = solve_paper(
        pairs(range(1, 65)), [PowerFunction.of_width(s, 64) for s in (0.015, 0.1, 0.25)]
    )
    np.testing.assert_allclose(solution.coefficients.sum(0), 1, atol=1e-12)


def test_coefficients_do_not_depend_on_the_unit_of_time():
    a = solve_paper(pairs([1, 2, 3, 4]), [PowerFunction.of_width(0.07, 4)])
    times = [k * 2**23 for k in (1, 2, 3, 4)]
    b = solve_paper(pairs(times), [PowerFunction.of_width(0.07, times[-1])])
    np.testing.assert_allclose(a.coefficients, b.coefficients, rtol=1e-9, atol=1e-12)


def test_unusable_sources_are_refused():
    target = [PowerFunction(float(sigma_rel_to_gamma(0.1)), 4)]
    with pytest.raises(ValueError, match="at least 1"):
        solve_paper([], target)
    with pytest.raises(ValueError, match="later"):
        solve_paper(pairs([5]), target)
    with pytest.raises(ValueError, match="duplicates"):
        solve_paper(pairs([4, 4]), target)
