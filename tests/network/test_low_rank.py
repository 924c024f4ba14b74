"""Products of factors, their sums, and factorizations, against NumPy in float64."""

import numpy as np
import pytest
import torch

from edm2lite.network.low_rank import Factors, added, factorize


def random_change(*shape, rank=3, scale=0.7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator)
    return Factors(down, torch.randn(shape[0], rank, generator=generator), scale)


def of_numpy(change):
    down = change.down.double().numpy().reshape(change.rank, -1)
    return (change.scale * change.up.double().numpy() @ down).reshape(change.shape)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3), (4, 7, 1, 1)])
def test_a_change_is_the_product_of_its_factors(shape):
    change = random_change(*shape)
    # sums of three products in float32, of values around 1
    np.testing.assert_allclose(change.delta(), of_numpy(change), atol=2e-6)
    assert change.shape == shape and change.rank == 3
    assert change.num_values == 3 * (shape[0] + int(np.prod(shape[1:])))
    np.testing.assert_allclose(change.scaled(-2).delta(), -2 * of_numpy(change), atol=4e-6)


def test_a_convolution_by_the_sum_is_two_convolutions_in_a_row():
    change, x = random_change(6, 5, 3, 3), torch.randn(2, 5, 8, 8)
    inner = torch.nn.functional.conv2d(x, change.down, padding=1)
    twice = torch.nn.functional.conv2d(inner, change.up[:, :, None, None]) * change.scale
    once = torch.nn.functional.conv2d(x, change.delta(), padding=1)
    torch.testing.assert_close(once, twice, atol=1e-4, rtol=1e-5)


def test_half_precision_is_multiplied_in_float32():
    change = random_change(6, 5)
    half = Factors(change.down.half(), change.up.half(), change.scale)
    assert half.delta().dtype == torch.float32
    np.testing.assert_allclose(half.delta(), of_numpy(half), atol=2e-6)


def test_changes_add_up():
    parts = [random_change(6, 5, 3, 3, rank=r, scale=s, seed=r) for r, s in ((1, 0.5), (4, -2.0))]
    both = added(parts)
    assert both.rank == 5
    np.testing.assert_allclose(both.delta(), sum(map(of_numpy, parts)), atol=1e-5)
    assert added(parts[:1]) is parts[0]
    with pytest.raises(ValueError, match=r"of one weight, got the shapes \[6, 5\], \[5, 6\]"):
        added([random_change(6, 5), random_change(5, 6)])
    with pytest.raises(ValueError, match="of one weight, got the shapes of none"):
        added([])


@pytest.mark.parametrize("shape", [(8, 5), (5, 8), (6, 4, 3, 3)])
def test_a_factorization_is_that_of_numpy(shape):
    delta = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = delta.flatten(1).numpy()
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    for rank in (1, 3, len(s)):
        found = factorize(delta, rank)
        best = u[:, :rank] * s[:rank] @ vt[:rank]
        np.testing.assert_allclose(found.change.delta().flatten(1), best, atol=1e-13)
        error = np.linalg.norm(matrix - best) / np.linalg.norm(matrix)
        assert found.error == pytest.approx(error, abs=1e-14)
        rows = found.change.down.flatten(1).numpy()
        np.testing.assert_allclose(rows @ rows.T / rows.shape[1], np.eye(rank), atol=1e-13)
    assert factorize(delta, 99).change.rank == len(s) and factorize(delta, 99).error == 0


def test_a_rank_is_chosen_by_its_error():
    delta = random_change(8, 6, 3, 3, rank=3).delta()
    matrix = delta.double().flatten(1).numpy()
    s = np.linalg.svd(matrix, compute_uv=False)
    errors = [np.sqrt((s[r:] ** 2).sum() / (s**2).sum()) for r in range(len(s) + 1)]
    for max_error in (0.9, 0.6, 0.3, 1e-3):
        found = factorize(delta, max_error=max_error)
        rank = max(1, next(r for r, error in enumerate(errors) if error <= max_error))
        assert found.change.rank == rank
        assert found.error == pytest.approx(errors[rank], abs=1e-9)
    assert factorize(delta, max_error=1e-3).change.rank == 3  # a product of rank 3 in float32
    assert factorize(delta, max_error=0).change.rank == 8  # nothing is left out
    assert factorize(delta, max_error=0).error == 0


def test_a_change_of_nothing_has_factors_and_no_error():
    found = factorize(torch.zeros(3, 4), rank=2)
    assert found.error == 0 and found.change.rank == 2
    assert not found.change.delta().any() and found.change.down.isfinite().all()
    assert factorize(torch.zeros(3, 4), max_error=0.1).change.rank == 1


def test_what_cannot_be_factorized_is_refused():
    for options, message in (
        ({}, "either rank or max_error"),
        ({"rank": 1, "max_error": 0.1}, "either rank or max_error"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"max_error": 1.0}, r"max_error must lie in \[0, 1\), got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            factorize(torch.ones(2, 2), **options)
    with pytest.raises(ValueError, match="it has NaN"):
        factorize(torch.tensor([[1.0, torch.nan]]), 1)
