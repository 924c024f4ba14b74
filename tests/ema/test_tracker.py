"""The oracle is the exact discrete profile (n_k/n)**(gamma+1) - (n_{k-1}/n)**(gamma+1)."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edm2lite.ema import PowerFunctionEMA, sigma_rel_to_gamma
from edm2lite.ema.averages import Averages
from edm2lite.ema.folder import list_snapshots
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

    def fail_while_applied():
        with ema.applied(0.1):
            assert net[0].weight.equal(ema.state_dict_of(0.1)["0.weight"])
            assert not net[0].weight.equal(own["0.weight"])
            raise KeyError

    with pytest.raises(KeyError):
        fail_while_applied()
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
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def averages(tensors, **where):
    where = {"device": torch.device("cpu"), "dtype": torch.float32, **where}
    return Averages(tensors, (16.97, 6.94), start_nimg=0, **where)


@pytest.mark.parametrize("where", [{"deferred": True}, {"buffered": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_way_to_average_gives_the_same_numbers(where, dtype, monkeypatch):
    # all tensors at once (deferred, float32) round a - w (a - t), the others a + w (t - a), both to
    # half a unit in the last place; weights of 1/2 or more, to one unit of the larger of a and t
    exact = not ("deferred" in where and dtype == torch.float32)
    unit = 0.0 if exact else torch.finfo(torch.float32).eps
    monkeypatch.setattr("edm2lite.ema.averages._ALONE", 8)
    monkeypatch.setattr("edm2lite.ema.averages._CHUNK", {"cpu": 10, "cuda": 10})
    monkeypatch.setattr("edm2lite.ema.averages._FOLD", 3)
    shapes = [(7, 5), (), (3,), (2, 2, 2), (0, 4), (6, 4), (1,)]
    tensors = [torch.randn(s).to(dtype) for s in shapes]
    tensors[5] = tensors[5].t().contiguous().t()  # not contiguous
    plain, other = averages(tensors), averages(tensors, **where)
    largest = 0.0
    for k in range(1, 9):
        for tensor in tensors:
            tensor.add_(torch.randn(tensor.shape))
            largest = max([largest, *tensor.abs().flatten().tolist()])
        fate = tensors[0][0, 0].clone()
        if k in (1, 4, 5):
            tensors[0][0, 0] = (float("nan"), float("inf"))[k % 2]
        plain.update(tensors, 100 * k)
        other.update(tensors, 100 * k)
        tensors[0][0, 0] = fate
        assert plain.num_refused == (k >= 1) + (k >= 4) + (k >= 5)
    other.settle()
    assert plain.history == other.history == [[200, 1], [100, 1], [300, 1], [100, 2]]
    assert (plain.nimg, plain.num_refused) == (other.nimg, other.num_refused) == (800, 3)
    for i in range(2):
        for shape, a, b in zip(shapes, plain.views(i), other.views(i), strict=True):
            assert a.shape == shape and a.isfinite().all()
            assert (a - b).abs().le(5 * unit * largest).all()  # 5 updates


@pytest.mark.parametrize("deferred", [False, True])
def test_rank_whose_shards_are_all_empty_takes_part(deferred):
    tensors = [torch.zeros(0, 4)]
    empty = averages(tensors, deferred=deferred)
    empty.update(tensors, 100)
    empty.settle()
    assert empty.history == [[100, 1]] and empty.views(1)[0].shape == (0, 4)


def test_large_finite_values_whose_sum_overflows_are_not_refused():
    theta = {"a": torch.full((1000,), 1.5e38), "b": torch.full((5,), -1.5e38)}
    ema = PowerFunctionEMA(theta)
    ema.update(10)
    assert ema.num_refused == 0 and ema.state_dict_of(0.05)["a"].equal(theta["a"])


def test_infinities_that_cancel_are_refused_and_no_average_is_touched():
    theta = {name: torch.randn(n) for name, n in (("a", 2**17), ("b", 2**16), ("c", 7), ("d", 3))}
    ema = PowerFunctionEMA(theta)
    ema.update(10)
    before = {s: {n: t.clone() for n, t in ema.state_dict_of(s).items()} for s in ema.sigma_rels}
    for name in theta:
        intact = theta[name].clone()
        theta[name][0], theta[name][-1] = float("inf"), -float("inf")
        ema.update(ema.nimg + 10 * (1 + ema.num_refused))
        theta[name].copy_(intact)
    assert ema.num_refused == 4
    for sigma_rel, kept in before.items():
        assert all(t.equal(kept[n]) for n, t in ema.state_dict_of(sigma_rel).items())


def test_large_finite_values_in_half_precision_are_not_refused():
    theta = {"theta": torch.full((100_000,), 6e4, dtype=torch.float16)}  # its 2-norm is 1.9e7
    ema = PowerFunctionEMA(theta)
    ema.update(10)
    assert ema.num_refused == 0 and ema.state_dict_of(0.05)["theta"].eq(6e4).all()


def test_refusals_are_logged_when_the_device_is_asked(caplog):
    theta = [torch.zeros(3)]
    deferred = averages(theta, deferred=True)
    theta[0].fill_(float("nan"))
    deferred.update(theta, 100)
    assert "refused" not in caplog.text
    deferred.settle()
    assert "refused EMA update 1 at nimg = 100" in caplog.text


def test_weights_sent_to_the_host_are_those_of_the_moment():
    theta = [torch.ones(3)]
    sent = averages(theta, buffered=True)
    sent.update(theta, 100)
    theta[0].fill_(9)
    assert sent.views(0)[0].eq(1).all()


@pytest.mark.cuda
@CUDA
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_updates_on_cuda_never_wait_and_match_the_cpu(device):
    net = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 4)).cuda()
    twin = nn.Sequential(nn.Linear(300, 300), nn.Linear(300, 4))
    ema, reference = PowerFunctionEMA(net, device=device), PowerFunctionEMA(twin)
    for k in range(1, 6):
        with torch.no_grad():
            for p, q in zip(net.parameters(), twin.parameters(), strict=True):
                p.copy_(q.normal_() if k != 3 else q.fill_(float("nan")))
        torch.cuda.set_sync_debug_mode("error")
        ema.update(100 * k)
        torch.cuda.set_sync_debug_mode("default")
        reference.update(100 * k)
    assert ema.history == reference.history and ema.num_refused == 1
    for sigma_rel in ema.sigma_rels:
        expected = reference.state_dict_of(sigma_rel)
        for name, value in ema.state_dict_of(sigma_rel).items():
            assert value.device.type == device
            torch.testing.assert_close(value.cpu(), expected[name], rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_sharded_model_gives_the_files_of_a_whole_one(tmp_path):
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = Path(__file__).with_name("sharded_tracking.py")
    done = subprocess.run(
        [sys.executable, *command, str(script), str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    whole, sharded = (sorted((tmp_path / n).glob("*.safetensors")) for n in ("whole", "sharded"))
    assert [p.name for p in whole] == [p.name for p in sharded] and len(whole) == 2
    assert [p.read_bytes() for p in whole] == [p.read_bytes() for p in sharded]


def test_tied_parameters_are_averaged_once_and_saved_under_every_name(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    ema = PowerFunctionEMA(net)
    ema.update(10)
    assert list(ema.state_dict()["averages"]["0.05"]) == ["0.weight", "0.bias", "1.bias"]
    path = ema.save_snapshots(tmp_path)[0]
    tensors, _ = load_tensors(path)
    assert list(tensors) == list(net.state_dict())
    assert tensors["0.weight"].equal(tensors["1.weight"])
    net[1].weight = nn.Parameter(net[1].weight.detach().clone())
    with pytest.raises(ValueError, match="0.weight and 1.weight must stay one tensor"):
        ema.update(20)


def test_frozen_parameter_that_begins_to_train_is_an_error():
    net = small_net()
    net[0].requires_grad_(False)
    ema = PowerFunctionEMA(net)
    net[0].weight.requires_grad_(True)
    with pytest.raises(ValueError, match=r"\['0.weight'\] were frozen then.*start_nimg"):
        ema.update(10)


def test_parameter_that_stops_training_is_still_averaged():
    net = small_net()
    ema = PowerFunctionEMA(net)
    ema.update(10)
    net[0].requires_grad_(False)
    ema.update(20)
    assert ema.history == [[10, 2]]


def test_parameter_of_another_shape_is_an_error():
    theta = {"a": torch.zeros(3)}
    ema = PowerFunctionEMA(theta)
    with pytest.raises(ValueError, match=r"a must keep its shape \(3,\), got \(4,\)"):
        ema.update(10, {"a": torch.zeros(4)})
    ema.update(10)
    state = PowerFunctionEMA({"a": torch.ones(1)}).state_dict()
    with pytest.raises(ValueError, match="must have the shape"):
        ema.load_state_dict(state)
    assert ema.nimg == 10 and ema.state_dict_of(0.05)["a"].eq(0).all()


def test_compiled_model_evaluates_with_the_average():
    net = small_net().eval()
    compiled = torch.compile(net, backend="eager")
    ema = PowerFunctionEMA(compiled, [0.1])
    ema.update(10)
    x = torch.randn(2, 3)
    before = compiled(x)
    with torch.no_grad():
        net[2].bias.add_(1)
    assert set(ema.state_dict_of(0.1)) == set(net.state_dict())
    with ema.applied(0.1):
        assert compiled(x).equal(before)
    assert not compiled(x).equal(before)


def test_update_within_applied_is_an_error():
    ema = PowerFunctionEMA(small_net())
    ema.update(10)
    with ema.applied(0.05), pytest.raises(RuntimeError, match="after applied"):
        ema.update(20)
    ema.update(20)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"sigma_rels": []}, "at least one"),
        ({"sigma_rels": [0.05], "gammas": [6.9]}, "not both"),
        ({"dtype": torch.bfloat16}, "float32 or float64"),
        ({"start_nimg": -1}, "at least 0"),
    ],
)
def test_unusable_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PowerFunctionEMA({"a": torch.zeros(1)}, **arguments)


def test_clock_must_be_an_integer():
    with pytest.raises(ValueError, match="a whole number, got 1000000.0"):
        PowerFunctionEMA({"a": torch.zeros(1)}).update(1e6)


def test_snapshots_in_the_background_hold_the_moment_of_the_call(tmp_path):
    net = small_net()
    ema = PowerFunctionEMA(net, run="one")
    for nimg in (64, 128):
        with torch.no_grad():
            net[0].weight.normal_()
        ema.update(nimg)
        ema.save_snapshots(tmp_path / "now")
        ema.save_snapshots(tmp_path / "later", background=True)
        net[1].running_mean.add_(1)
    ema.flush()
    now, later = (sorted((tmp_path / n).glob("*.safetensors")) for n in ("now", "later"))
    assert len(now) == 4
    assert [p.read_bytes() for p in now] == [p.read_bytes() for p in later]


def test_full_disk_is_reported_and_nothing_is_lost(tmp_path, monkeypatch):
    ema = PowerFunctionEMA(small_net())
    ema.update(64)

    def save(background):
        ema.save_snapshots(tmp_path, background=background)
        ema.flush()

    with monkeypatch.context() as patched:
        patched.setattr("edm2lite.atomic.os.fsync", full_disk)
        for background in (False, True):
            with pytest.raises(OSError, match="No space left.*make room") as caught:
                save(background)
            assert caught.value.errno == errno.ENOSPC and "ema-0.05000" in caught.value.filename
            assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    ema.update(96)
    ema.save_snapshots(tmp_path)
    assert [(i.nimg, i.sigma_rel) for i in list_snapshots(tmp_path)] == [
        (64, 0.05),  # waited in the background
        (64, 0.10),
        (96, 0.05),
        (96, 0.10),
    ]


def full_disk(descriptor):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_killed_while_writing_leaves_no_file_of_that_name(tmp_path):
    code = f"""
import os, signal, torch
from edm2lite.ema import PowerFunctionEMA
ema = PowerFunctionEMA({{"a": torch.zeros(1000)}})
ema.update(10)
os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
ema.save_snapshots({str(tmp_path)!r})
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert not list(tmp_path.glob("*.safetensors"))


def test_folder_of_another_run_is_refused(tmp_path):
    theta = {"a": torch.zeros(3)}
    first, second = (PowerFunctionEMA(theta, run=run) for run in ("a1f3", "77c0"))
    for ema in (first, second):
        ema.update(10)
    first.save_snapshots(tmp_path)
    with pytest.raises(ValueError, match="holds run a1f3 and this is run 77c0"):
        second.save_snapshots(tmp_path)
    second.load_state_dict(first.state_dict())
    second.update(20)
    second.save_snapshots(tmp_path)
    assert len(list_snapshots(tmp_path)) == 4
