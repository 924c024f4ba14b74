"""Stored averages that are written again. Oracle: the same averages, tracked in float64."""

import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, reconstruct


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """(float16 snapshots of a walk, the final averages in float64)"""
    folder = tmp_path_factory.mktemp("walk")
    generator = torch.Generator().manual_seed(0)
    theta = {"a": torch.randn(3000, generator=generator)}
    ema, exact = PowerFunctionEMA(theta), PowerFunctionEMA(theta, dtype=torch.float64)
    for k in range(1, 401):
        theta["a"] += 0.01 * torch.randn(3000, generator=generator)
        ema.update(64 * k)
        exact.update(64 * k)
        if k % 20 == 0:
            ema.save_snapshots(folder, dtype=torch.float16)
    return folder, exact


@pytest.mark.parametrize("solver", ["calibrated", "paper"])
@pytest.mark.parametrize("sigma_rel", [0.05, 0.10])
def test_a_stored_length_written_again_in_its_own_type_is_not_predicted_to_round_twice(
    walk, sigma_rel, solver
):
    folder, exact = walk
    truth = exact.state_dict_of(sigma_rel)["a"]
    for dtype, twice in ((torch.float16, False), (torch.float32, False), (torch.bfloat16, True)):
        (built,) = reconstruct(folder, sigma_rel=[sigma_rel], dtype=dtype, solver=solver)
        error = float((built.state_dict["a"].double() - truth).norm() / truth.norm())
        assert abs(built.predicted_error / error - 1) < 0.05
        assert (built.predicted_error > 1e-3) == twice


def test_a_length_that_is_not_stored_is_predicted_to_round_once_more(walk):
    low, high = (
        next(iter(reconstruct(walk[0], sigma_rel=[0.07], dtype=dtype))).predicted_error
        for dtype in (torch.float16, torch.float32)
    )
    assert abs((low**2 - high**2) ** 0.5 / 2.05e-4 - 1) < 0.05
