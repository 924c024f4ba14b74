"""The written derivative of unit_rms against finite differences, and in low precision."""

import pytest
import torch

from edm2lite.network.kernels.recompute import clip, modulated_silu
from edm2lite.network.kernels.unit_rms import EPS, unit_rms


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # of gradcheck
@pytest.mark.parametrize("shape, dim", [((3, 5), 1), ((2, 4, 3, 2), 1), ((4, 3, 2), (1, 2))])
def test_derivatives_of_every_kind_equal_finite_differences(shape, dim):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def function(x):
        return unit_rms(x, dim, 0.7)

    x.requires_grad_()
    assert torch.autograd.gradcheck(
        function, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(function, x)


def test_of_a_parameter_the_derivatives_are_the_same():
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    kinds = [x.clone().requires_grad_(), torch.nn.Parameter(x.clone())]
    results = []
    for given in kinds:
        (first,) = torch.autograd.grad(unit_rms(given, 1).pow(3).sum(), given, create_graph=True)
        results.append((first, *torch.autograd.grad(first.pow(2).sum(), given)))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_differs_by_the_rounding_of_factors_and_results(dtype):
    x = (8 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))).to(dtype)
    change = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).to(dtype)
    results = []
    for kind in (dtype, torch.float64):
        given = x.to(kind).requires_grad_()
        y = unit_rms(given, 1)
        results.append((y, *torch.autograd.grad(y, given, change.to(kind))))
    for ours, exact in zip(*results, strict=True):
        assert ours.dtype == dtype
        # Three roundings, each of half a unit in the last place; sums of terms of the size of 1.
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        assert error < 3 * torch.finfo(dtype).eps


def test_modulated_silu_has_its_first_and_second_derivatives():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    scale = torch.randn(2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    expected = torch.nn.functional.silu(x * scale[:, :, None, None])
    torch.testing.assert_close(modulated_silu(x, scale), expected)
    assert torch.autograd.gradcheck(modulated_silu, (x, scale))
    assert torch.autograd.gradgradcheck(modulated_silu, (x, scale))


def test_clipping_passes_all_gradients_and_keeps_nothing_for_them():
    x = torch.tensor([-9.0, -2.0, 0.5, 3.0, 7.0], dtype=torch.float64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda _: None):
        y = clip(x, 4.0)
    (grad,) = torch.autograd.grad(y, x, torch.full_like(x, 2))
    assert y.tolist() == [-4, -2, 0.5, 3, 4]
    assert grad.tolist() == [2] * 5
    assert not kept


def test_a_scale_of_zero_gives_zeros_and_finite_derivatives():
    x = torch.randn(2, 3, requires_grad=True)
    y = unit_rms(x * 1, 1, 0.0)
    (grad,) = torch.autograd.grad(y, x, torch.ones(2, 3))
    assert not y.any() and not grad.any()


def test_the_compiled_form_is_the_same():
    x = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    compiled = torch.compile(unit_rms, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, 1, 0.3), unit_rms(x, 1, 0.3), rtol=1e-6, atol=0)


def test_zeros_stay_zero_with_finite_derivatives():
    x = torch.zeros(2, 3, requires_grad=True)
    y = unit_rms(x, 1)
    (grad,) = torch.autograd.grad(y, x, torch.ones(2, 3))
    assert not y.any()
    torch.testing.assert_close(grad, torch.full((2, 3), 1 / EPS))
