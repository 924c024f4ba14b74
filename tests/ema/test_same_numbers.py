"""A rebuilt average is the same alone and among others, to the last bit, by every way to it."""

import numpy as np
import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, list_snapshots, plan_targets, reconstruct
from edm2lite.ema.building import build
from edm2lite.ema.planning import random_walk
from edm2lite.ema.profile import Exponential, PowerFunction, Window
from edm2lite.ema.solve import solve_calibrated, solve_paper
from edm2lite.models.loading import from_reconstruction, load
from edm2lite.tensorfile import read_header

LENGTHS = [0.03, 0.05, 0.07, 0.10, 0.13, 0.16, 0.20, 0.25]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """12 moments of two averages in float16, of tensors of many sizes."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    weights = {f"w{n}": torch.randn(n) for n in (1, 7, 300, 5001)}
    ema = PowerFunctionEMA(weights)
    for step in range(1, 13):
        for value in weights.values():
            value += 0.05 * torch.randn(value.shape)
        ema.update(64 * step)
        ema.save_snapshots(folder, dtype=torch.float16)
    return folder


def same(one, other):
    return (
        one.metadata == other.metadata
        and one.coefficients.tobytes() == other.coefficients.tobytes()
        and one.predicted_error == other.predicted_error
        and all(value.equal(other.state_dict[name]) for name, value in one.state_dict.items())
    )


@pytest.mark.parametrize("solver", ["calibrated", "paper"])
def test_alone_or_among_others(run, solver):
    together = reconstruct(run, sigma_rel=LENGTHS, solver=solver, max_error=np.inf)
    pairs = reconstruct(run, sigma_rel=LENGTHS[::-3], solver=solver, max_error=np.inf)
    for length, among in zip(LENGTHS, together, strict=True):
        alone = reconstruct(run, sigma_rel=length, solver=solver, max_error=np.inf)
        assert same(alone, among), length
    for among in pairs:
        assert same(together[LENGTHS.index(among.sigma_rel)], among)


def test_files_have_the_bytes_of_what_is_rebuilt_in_memory(run, tmp_path):
    reconstruct(run, sigma_rel=LENGTHS, out=tmp_path / "all", max_error=np.inf)
    for length in LENGTHS:
        alone = reconstruct(run, sigma_rel=length, out=tmp_path / "one", max_error=np.inf)
        assert alone.path.read_bytes() == (tmp_path / "all" / alone.path.name).read_bytes()
    (in_memory,) = reconstruct(run, sigma_rel=[0.13], max_error=np.inf)
    header = read_header(tmp_path / "all" / f"ema-0.13000-{64 * 12:010d}.safetensors")
    assert in_memory.metadata.items() <= header.metadata.items()


def test_a_target_does_not_depend_on_targets_of_another_kind():
    """Inner products of power functions have a closed form, others need a grid."""
    end = 2**20
    sources = [PowerFunction.of_width(s, end * k // 20) for k in range(1, 21) for s in (0.05, 0.1)]
    targets = [
        PowerFunction.of_width(0.07, end), Window(end / 3, end), Exponential(end / 9, end),
        PowerFunction(0.0, end), PowerFunction.of_width(0.002, end),
    ]  # fmt: skip
    model = random_walk(end, end // 20)
    for solve in (solve_calibrated, solve_paper):
        together = solve(sources, targets, model, 2e-4)
        for r, target in enumerate(targets):
            alone = solve(sources, [target], model, 2e-4)
            assert np.array_equal(alone.coefficients[:, 0], together.coefficients[:, r])
            assert alone.predicted_error[0] == together.predicted_error[r]


def test_a_run_by_its_name_is_that_of_the_list(run_dir):
    plans = plan_targets(run_dir, sigma_rel=LENGTHS)
    for plan, built in zip(plans, build(plans), strict=True):
        listed = from_reconstruction(built, "listed")
        named = load(f"{run_dir}@sigma_rel={plan.sigma_rel},max_error=9")
        assert named.metadata == listed.metadata and named.identity == listed.identity
        values = listed.net.state_dict()
        assert all(value.equal(values[name]) for name, value in named.net.state_dict().items())
    assert len(list_snapshots(run_dir)) == len(plans[0].inputs)
