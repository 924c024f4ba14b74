"""KID, precision and recall: influences against brute force, intervals by simulation."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from edm2lite.metrics import kernel
from edm2lite.metrics.influence import block_influences, covariance
from edm2lite.metrics.interval import wilson_limits
from edm2lite.metrics.kernel import kernel_distance, kernel_influences
from edm2lite.metrics.manifold import (
    BLOCKS,
    covered,
    precision_recall,
    radii,
    recall_without_blocks,
    share,
)
from edm2lite.metrics.measurement import ImageRows, Measurement


def problem(seed, num, num_real, dim, scale=1.2, shift=0.2):
    rng = np.random.default_rng(seed)
    factor = rng.standard_normal((dim, dim)) / np.sqrt(dim) + 0.3 * np.eye(dim)
    real = rng.standard_normal((num_real, dim)) @ factor.T

    def draw():
        rows = scale * rng.standard_normal((num, dim)) @ factor.T + shift
        return rows.astype(np.float32)

    return draw, real.astype(np.float32)


def unbiased_distance(x, y):
    """The estimate of arXiv 1801.01401, Eq. 4, in float64 and by sums over pairs."""

    def mean(a, b, same):
        kernel = (np.einsum("if,jf->ij", a, b) / a.shape[1] + 1) ** 3
        return kernel[~np.eye(len(a), dtype=bool)].mean() if same else kernel.mean()

    x, y = x.astype(np.float64), y.astype(np.float64)
    return mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)


def test_kernel_influence_is_the_change_by_leaving_an_image_out():
    draw, real = problem(0, num=40, num_real=40, dim=6)
    images = draw()
    values = kernel_influences(images, real)[0]
    left = [unbiased_distance(np.delete(images, i, 0), real) for i in range(len(images))]
    change = (1 - len(images)) * (np.array(left) - np.mean(left))
    np.testing.assert_allclose(values, change * np.sqrt(40 / 39), rtol=0, atol=1e-9)


def test_kernel_influence_is_that_of_the_subsets_that_were_drawn(monkeypatch):
    """Against the same 100 subsets, an image taken out of those that it is in."""
    monkeypatch.setattr(kernel, "SUBSET_SIZE", 20)
    draw, real = problem(1, num=50, num_real=60, dim=5)
    images = draw()
    random = np.random.RandomState(2020)
    pairs = [
        (random.choice(50, 20, replace=False), random.choice(60, 20, replace=False))
        for _ in range(100)
    ]
    whole = [unbiased_distance(images[a], real[b]) for a, b in pairs]
    assert np.mean(whole) == pytest.approx(kernel_distance(images, real)[0], rel=1e-4)
    change = np.zeros(50)
    for (a, b), value in zip(pairs, whole, strict=True):
        for k, i in enumerate(a):
            change[i] += 19 * (value - unbiased_distance(images[np.delete(a, k)], real[b]))
    got = kernel_influences(images, real)[0] / np.sqrt(50 / 49)
    # 100 subsets of 20 of 50 images: a change of each counts 50 / 2000
    np.testing.assert_allclose(got, change / 40, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "num, dim, scale, shift", [(300, 8, 1.0, 0.0), (300, 8, 1.3, 0.3), (100, 16, 1.2, 0.2)]
)
def test_kernel_intervals_cover_the_expected_distance(num, dim, scale, shift, monkeypatch):
    monkeypatch.setattr(kernel, "SUBSETS", 5)  # of all images: more are not needed
    draw, real = problem(2, num, 500, dim, scale, shift)
    values, half = [], []
    for _ in range(300):
        images = draw()
        values.append(kernel_distance(images, real)[0])
        variance = covariance([kernel_influences(images, real)])
        half.append(1.96 * np.sqrt(variance[0, 0]))
    covered_share = np.mean(np.abs(np.array(values) - np.mean(values)) < half)
    # the frequency itself has standard deviation 0.013 at 300 repeats
    assert 0.91 <= covered_share <= 0.99, covered_share


def test_recall_without_a_block_is_the_recall_of_the_other_images():
    for num in (2 * BLOCKS, 300):
        draw, real = problem(3, num, 200, dim=4)
        images = draw()
        blocks = np.array_split(np.arange(num), BLOCKS)
        expected = [precision_recall(np.delete(images, b, 0), real)[1] for b in blocks]
        got = recall_without_blocks(torch.from_numpy(images), torch.from_numpy(real))
        np.testing.assert_allclose(got, expected, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(
    "num, dim, scale, shift",
    [(300, 8, 0.6, 0.3), (100, 16, 1.2, 0.2), (500, 32, 0.7, 0.0), (300, 4, 1.3, 0.3)],
)
def test_intervals_of_precision_and_recall_cover(num, dim, scale, shift):
    draw, real = problem(4, num, 400, dim, scale, shift)
    real = torch.from_numpy(real)
    radius, limits = radii(real), {"precision": [], "recall": []}
    for _ in range(300):
        images = torch.from_numpy(draw())
        inside = covered(images, real, radius)
        influences = {"precision": Measurement.of_mean(inside.double().numpy()).influences}
        values = {"precision": share(inside), "recall": share(covered(real, images, radii(images)))}
        without = recall_without_blocks(images, real)
        influences["recall"] = block_influences(without, num)
        for name, found in limits.items():
            variance = covariance([influences[name]])[0, 0]
            found.append((values[name], *wilson_limits(values[name], variance, num)))
    for name, lowest in (("precision", 0.91), ("recall", 0.93)):
        value, low, high = np.array(limits[name]).T
        inside = np.mean((low <= value.mean()) & (value.mean() <= high))
        # recall's jackknife is too wide rather than too narrow
        assert inside >= lowest, (name, inside)


def test_limits_of_a_share_are_wilsons():
    for hits, num in ((0, 20), (7, 50), (50, 50), (199, 200)):
        p = hits / num
        expected = binomtest(hits, num).proportion_ci(method="wilson")
        got = wilson_limits(p, p * (1 - p) / num, num)
        np.testing.assert_allclose(got, [expected.low, expected.high], rtol=1e-9, atol=1e-12)


def test_moments_of_rows_in_memory_are_those_of_numpy():
    rows = np.random.default_rng(0).standard_normal((50, 3))
    total, quarters = ImageRows.of(rows).moments
    np.testing.assert_allclose(total.cov, np.cov(rows.T), rtol=1e-12)
    assert [quarter.count for quarter in quarters] == [12, 13, 12, 13]
