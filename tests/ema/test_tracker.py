"""The oracle is the exact discrete profile (n_k/n)**(gamma+1) - (n_{k-1}/n)**(gamma+1)."""

import numpy as np
import pytest
import torch
from torch import nn

from edm2lite.ema import PowerFunctionEMA, sigma_rel_to_gamma
from edm2lite.ema.snapshot import list_snapshots
from edm2lite.tensorfile import load_tensors

STRIDES = {
    "every batch": [100] * 40,
    "every seventh": [700] * 12,
    "mixed batch sizes": [100] * 10 + [256] * 10 + [7, 900, 1] + [64] * 10,
}


def exact_profile(strides, gamma, start=0):
    ends = start + np.cumsum(strides)
    power = (np.concatenate([[start], ends]) / ends[-1]) ** (gamma + 1)
    return np.diff(power)


def impulse_response(strides, sigma_rel, dtype=torch.float64):
    """Weights e_k at update k: the average then holds the weight of each update."""
    theta = {"theta": torch.zeros(len(strides), dtype=dtype)}
    ema = PowerFunctionEMA(theta, [sigma_rel], dtype=dtype)
    nimg = 0
    for k, stride in enumerate(strides):
        theta["theta"].zero_()[k] = 1
        nimg += stride
        ema.update(nimg)
    return ema.state_dict_of(sigma_rel)["theta"].numpy(), ema


@pytest.mark.parametrize("sigma_rel", [0.02, 0.05, 0.10, 0.25])
@pytest.mark.parametrize("strides", STRIDES.values(), ids=STRIDES.keys())
def test_impulse_response_is_the_exact_discrete_profile(strides, sigma_rel):
    got, _ = impulse_response(strides, sigma_rel)
    # products of up to 40 decays of relative error 1e-16 each, far below 1e-13
    np.testing.assert_allclose(
        got, exact_profile(strides, sigma_rel_to_gamma(sigma_rel)), rtol=1e-12, atol=1e-15
    )


def test_history_records_the_strides_really_seen():
    _, ema = impulse_response(STRIDES["mixed batch sizes"], 0.1)
    assert ema.history == [[100, 10], [256, 10], [7, 1], [900, 1], [1, 1], [64, 10]]


@pytest.mark.parametrize("sigma_rel", [0.05, 0.10, 0.25])
def test_average_of_a_ramp_is_the_mean_of_the_profile(sigma_rel):
    total, batch = 100_000, 100
    theta = {"theta": torch.zeros(1, dtype=torch.float64)}
    ema = PowerFunctionEMA(theta, [sigma_rel], dtype=torch.float64)
    for nimg in range(batch, total + 1, batch):
        theta["theta"].fill_(nimg / total)
        ema.update(nimg)
    gamma = sigma_rel_to_gamma(sigma_rel)
    error = ema.state_dict_of(sigma_rel)["theta"].item() - (gamma + 1) / (gamma + 2)
    assert 0 <= error <= batch / total  # each value stands for one batch and leads it by that


def test_profile_survives_save_and_load():
    strides = STRIDES["mixed batch sizes"]
    theta = {"theta": torch.zeros(len(strides), dtype=torch.float64)}
    ema = PowerFunctionEMA(theta, [0.05], dtype=torch.float64)
    nimg = 0
    for k, stride in enumerate(strides):
        theta["theta"].zero_()[k] = 1
        nimg += stride
        ema.update(nimg)
        if k == 12:
            state = ema.state_dict()
            ema = PowerFunctionEMA(theta, [0.05], dtype=torch.float64)
            ema.load_state_dict(state)
    got = ema.state_dict_of(0.05)["theta"].numpy()
    np.testing.assert_allclose(
        got, exact_profile(strides, sigma_rel_to_gamma(0.05)), rtol=1e-12, atol=1e-15
    )
    assert [tuple(pair) for pair in ema.history][:2] == [(100, 10), (256, 10)]


def test_late_start_gives_the_past_to_the_weights_of_that_moment():
    theta = {"theta": torch.eye(3, dtype=torch.float64)[0].clone()}
    ema = PowerFunctionEMA(theta, [0.1], start_nimg=1000, dtype=torch.float64)
    for k, nimg in ((1, 1500), (2, 2000)):
        theta["theta"].copy_(torch.eye(3, dtype=torch.float64)[k])
        ema.update(nimg)
    power = np.array([0.5, 0.75, 1]) ** (sigma_rel_to_gamma(0.1) + 1)
    np.testing.assert_allclose(
        ema.state_dict_of(0.1)["theta"], np.diff(power, prepend=0), rtol=1e-12
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_update_is_refused_and_the_next_one_covers_it(bad, caplog):
    theta = {"theta": torch.zeros(3, dtype=torch.float64)}
    ema = PowerFunctionEMA(theta, [0.1], dtype=torch.float64)
    for k, nimg in enumerate((100, 200, 300)):
        theta["theta"].zero_()[k] = bad if k == 1 else 1
        ema.update(nimg)
    got = ema.state_dict_of(0.1)["theta"].numpy()
    gamma = sigma_rel_to_gamma(0.1)
    np.testing.assert_allclose(
        got, [(1 / 3) ** (gamma + 1), 0, 1 - (1 / 3) ** (gamma + 1)], rtol=1e-12
    )
    assert ema.num_refused == 1 and "refused" in caplog.text
    assert ema.history == [[100, 1], [200, 1]]


def test_clock_that_does_not_advance_is_refused():
    ema = PowerFunctionEMA({"theta": torch.zeros(1)})
    ema.update(100)
    with pytest.raises(ValueError, match="nimg must grow"):
        ema.update(100)


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module


def small_net():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_wrapper_prefixes_are_removed():
    net = small_net()
    compiled_name = nn.ModuleDict({"_orig_mod": net})
    names = set(net.state_dict())
    for source in (Wrapped(net), compiled_name, Wrapped(nn.ModuleDict({"_orig_mod": net}))):
        ema = PowerFunctionEMA(source)
        ema.update(10)
        assert set(ema.state_dict_of(0.05)) == names


def test_a_users_own_submodule_called_module_keeps_its_name():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    ema = PowerFunctionEMA(Net())
    assert "module.weight" in ema.state_dict_of(0.1)


def test_tensors_that_differ_are_named():
    ema = PowerFunctionEMA({"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"missing \['b'\]"):
        ema.update(10, {"a": torch.zeros(1)})


def test_buffers_and_frozen_parameters_are_copied_as_they_are():
    net = small_net()
    net[0].weight.requires_grad_(False)
    ema = PowerFunctionEMA(net)
    net[1].running_mean.fill_(7)
    with torch.no_grad():
        net[0].weight.fill_(5)
        net[2].weight.fill_(1)
    ema.update(10)
    state = ema.state_dict_of(0.05)
    assert state["1.running_mean"].eq(7).all() and state["0.weight"].eq(5).all()
    assert state["1.num_batches_tracked"].dtype == torch.int64
    assert state["2.weight"].eq(1).all()


def test_average_of_a_half_precision_model_is_kept_in_float32():
    theta = {"theta": torch.ones(1, dtype=torch.bfloat16)}
    ema = PowerFunctionEMA(theta, [0.05])
    for k in range(1, 200):
        theta["theta"].fill_(1 + (k % 2) / 128)  # one bfloat16 step above 1
        ema.update(100 * k)
    average = ema.state_dict_of(0.05)["theta"]
    assert average.dtype == torch.float32
    weights = exact_profile([100] * 199, sigma_rel_to_gamma(0.05))
    exact = 1 + (weights * (np.arange(1, 200) % 2)).sum() / 128
    assert average.item() == pytest.approx(exact, abs=1e-6)  # bfloat16 would be off by 4e-3


def test_applied_shows_the_average_and_restores_the_weights_exactly():
    net = small_net()
    ema = PowerFunctionEMA(net, [0.1])
    ema.update(10)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    ema.update(20)
    own = {n: p.clone() for n, p in net.state_dict().items()}
    with pytest.raises(KeyError):
        with ema.applied(0.1):
            torch.testing.assert_close(
                net[0].weight, ema.state_dict_of(0.1)["0.weight"], rtol=0, atol=0
            )
            assert not net[0].weight.equal(own["0.weight"])
            raise KeyError
    assert all(p.equal(own[n]) for n, p in net.state_dict().items())


def test_snapshot_holds_exactly_the_average(tmp_path):
    net = small_net()
    ema = PowerFunctionEMA(net, [0.05, 0.0731234567])
    ema.update(64)
    ema.update(96)
    ema.save_snapshots(tmp_path, extra={"model": "{}"})
    infos = list_snapshots(tmp_path)
    assert [info.sigma_rel for info in infos] == [0.05, 0.0731234567]
    assert [info.gamma for info in infos] == list(ema.gammas)
    assert {(info.nimg, info.run, info.dtype) for info in infos} == {(96, ema.run, "float32")}
    assert infos[0].history == ((64, 1), (32, 1)) and infos[0].extra == {"model": "{}"}
    for info in infos:
        tensors, _ = load_tensors(info.path)
        assert list(tensors) == list(net.state_dict())
        expected = ema.state_dict_of(info.sigma_rel)
        assert all(tensors[n].equal(expected[n].detach()) for n in tensors)


def test_lengths_whose_files_would_collide_are_refused():
    with pytest.raises(ValueError, match="distinct"):
        PowerFunctionEMA({"a": torch.zeros(1)}, [0.100001, 0.100002])


def test_snapshot_before_any_update_is_refused(tmp_path):
    with pytest.raises(ValueError, match="at least one update"):
        PowerFunctionEMA({"a": torch.zeros(1)}).save_snapshots(tmp_path)


def test_overflow_in_the_stored_type_writes_nothing(tmp_path):
    ema = PowerFunctionEMA({"a": torch.full((2,), 1e6)}, [0.1])
    ema.update(1)
    with pytest.raises(ValueError, match="finite as float16"):
        ema.save_snapshots(tmp_path, torch.float16)
    assert not list(tmp_path.iterdir())
