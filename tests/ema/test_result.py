"""What the tracker refuses and says of itself, and averages that are loaded into wrapped models."""

import copy

import pytest
import torch
from torch import nn

from edm2lite.ema import PowerFunctionEMA, plan_targets, reconstruct


class Wrapped(nn.Module):
    """A model as DDP holds it: under the name ``module``."""

    def __init__(self, module):
        super().__init__()
        self.module = module


def model():
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of one snapshot time: every average of power-function form is the weights then."""
    folder = tmp_path_factory.mktemp("run")
    net = model()
    net(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)))  # moves the buffers
    ema = PowerFunctionEMA(net, run="mine")
    ema.update(64)
    ema.save_snapshots(folder)
    return folder, net


@pytest.mark.parametrize(
    "wrap", [lambda net: net, Wrapped, torch.compile, lambda net: Wrapped(torch.compile(net))]
)
def test_an_average_is_loaded_into_a_model_whatever_it_is_wrapped_in(run, wrap):
    folder, trained = run
    net = model()
    reconstruct(folder, sigma_rel=0.05).load_into(wrap(net))
    for name, value in trained.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-6, atol=0, msg=name)


def test_a_written_average_is_loaded_in_the_types_of_the_model(run, tmp_path):
    folder, trained = run
    net = model().double()
    result = reconstruct(folder, sigma_rel=0.05, out=tmp_path)
    result.load_into(net)
    assert result.state_dict is None
    assert net[0].weight.dtype == torch.float64
    torch.testing.assert_close(net[0].weight.float(), trained[0].weight, rtol=1e-6, atol=0)


def test_nothing_changes_where_an_average_does_not_fit(run):
    folder, _ = run
    result = reconstruct(folder, sigma_rel=0.05)
    for other, message in (
        (nn.Linear(3, 2), "also has \\['bias', 'weight'\\] and lacks"),
        (nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1)), "also has"),
        (nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)), "must have the shape \\[2, 3\\]"),
    ):
        before = copy.deepcopy(other.state_dict())
        with pytest.raises(ValueError, match=message):
            result.load_into(other)
        assert all(value.equal(before[name]) for name, value in other.state_dict().items())
    (plan,) = plan_targets(folder, sigma_rel=[0.05])
    with pytest.raises(ValueError, match=r"this is a plan; call reconstruct\(\)"):
        plan.load_into(model())


def test_results_and_trackers_describe_themselves_in_one_line(run, tmp_path):
    folder, _ = run
    (plan,) = plan_targets(folder, sigma_rel=[0.05])
    shown = repr(plan)
    assert shown.startswith("Reconstruction(sigma_rel=0.05, nimg=64, predicted_error=")
    assert shown.endswith("of 2 snapshots)")
    assert repr(reconstruct(folder, decay="linear:0.5", max_error=1, out=tmp_path)).endswith(
        f"of 2 snapshots, {tmp_path}/decay-linear-0.5-0000000064.safetensors)"
    )
    assert repr(reconstruct(folder, sigma_rel=0.05)).endswith("of 2 snapshots, in memory)")
    ema = PowerFunctionEMA({"w": torch.zeros(3)}, run="mine")
    ema.update(128)
    expected = "PowerFunctionEMA(sigma_rels=(0.05, 0.1), nimg=128, run='mine', 1 tensors)"
    assert repr(ema) == expected


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PowerFunctionEMA(model().parameters()), "got a generator; give the model itself"),
        (lambda: PowerFunctionEMA(list(model().parameters())), "got a list; give the model"),
        (lambda: PowerFunctionEMA(model(), sigma_rels=0.05), r"got 0.05; give \[0.05\]"),
        (lambda: PowerFunctionEMA(model(), gammas=5), r"gammas must be a list .* give \[5\]"),
        (lambda: PowerFunctionEMA(model()).update(2.5), "a whole number, got 2.5; count"),
        (lambda: PowerFunctionEMA(model()).update("64"), "a whole number, got '64'"),
        (
            lambda: PowerFunctionEMA(model()).update(64, model().parameters()),
            "got a generator; give the model itself",
        ),
    ],
)
def test_the_tracker_says_what_it_wants(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)


def test_whole_numbers_of_any_type_are_counts():
    ema = PowerFunctionEMA(model())
    ema.update(torch.tensor(64))
    assert ema.nimg == 64
