"""Rebuilt averages against directly tracked ones, in-memory sums, and damaged folders."""

import json
import shutil

import numpy as np
import pytest
import torch

from edm2lite.ema import (
    Exponential,
    PowerFunctionEMA,
    Window,
    list_snapshots,
    plan_targets,
    reconstruct,
    reconstruct_each,
)
from edm2lite.ema.building import build
from edm2lite.ema.targets import check_error
from edm2lite.ema.verification import verify_reconstruction
from edm2lite.tensorfile import load_tensors, save_tensors

TRACKED = (0.03, 0.07, 0.13, 0.20)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A slow random walk: 60 snapshots of (.05, .10), and averages tracked directly."""
    folder = tmp_path_factory.mktemp("walk") / "snapshots"
    generator = torch.Generator().manual_seed(0)
    theta = {"a.weight": torch.randn(40, 30, generator=generator), "b": torch.zeros(7)}
    theta["steps"] = torch.tensor(0)
    ema = PowerFunctionEMA(theta, run="walk")
    direct = PowerFunctionEMA(theta, TRACKED)
    for k in range(1, 1201):
        for name in ("a.weight", "b"):
            theta[name] += 0.01 * torch.randn(theta[name].shape, generator=generator)
        theta["steps"] += 1
        ema.update(64 * k)
        direct.update(64 * k)
        if k % 20 == 0:
            ema.save_snapshots(folder, extra={"model": "{}"})
    return folder, direct


def test_rebuilt_averages_match_directly_tracked_ones(walk):
    """The error is what the gap of the profiles makes of the steps of the walk.

    An average holds the increment of step j in the share 1 - P(64 (j - 1)), and increments are
    independent with standard deviation 0.01. So the squared error per element is expected to be
    0.01**2 times the sum over j of the squared gap between the shares of sources and target.
    """
    folder, direct = walk
    starts = 64.0 * np.arange(1200)
    for built in reconstruct(folder, sigma_rel=TRACKED):
        truth = direct.state_dict_of(built.sigma_rel)["a.weight"]
        error = (built.state_dict["a.weight"] - truth).norm() / truth.norm()
        sources = np.stack([1 - info.profile.cumulative(starts) for info in built.inputs])
        gap = built.coefficients @ sources - (1 - built.profile.cumulative(starts))
        expected = 0.01 * np.linalg.norm(gap) * truth.numel() ** 0.5 / truth.norm()
        assert error < 2e-3, (built.sigma_rel, error)
        assert 0.8 < error / expected < 1.25, built.sigma_rel  # 1200 elements scatter by 2 %


def test_a_stored_length_comes_back_as_it_was_stored(walk):
    folder, _ = walk
    info = list_snapshots(folder)[-1]
    built = reconstruct(folder, sigma_rel=info.sigma_rel)
    one_hot = np.zeros(len(built.inputs))
    one_hot[[i.path for i in built.inputs].index(info.path)] = 1
    np.testing.assert_allclose(built.coefficients, one_hot, atol=1e-6)
    torch.testing.assert_close(
        built.state_dict["a.weight"], load_tensors(info.path)[0]["a.weight"], atol=1e-6, rtol=0
    )


def test_stream_equals_the_sum_in_memory(walk, monkeypatch):
    folder, _ = walk
    monkeypatch.setattr("edm2lite.ema.blocks.BLOCK_BYTES", 4 * 122 * 1024)
    built = reconstruct(folder, gamma=[3.0, 12.0])
    for result in built:
        exact = sum(
            x * load_tensors(i.path)[0]["a.weight"].double()
            for x, i in zip(result.coefficients, result.inputs, strict=True)
        )
        # 120 float32 terms of size up to 5 and rounding 3e-7 each, partly canceling
        torch.testing.assert_close(result.state_dict["a.weight"].double(), exact, atol=1e-5, rtol=0)
        assert result.state_dict["steps"] == 1200
    assert [b.gamma for b in built] == [3.0, 12.0]


def test_files_and_memory_agree_and_carry_provenance(walk, tmp_path):
    folder, _ = walk
    in_memory = reconstruct(folder, sigma_rel=[0.2, 0.03])
    on_disk = reconstruct(folder, sigma_rel=[0.2, 0.03], out=tmp_path)
    for a, b in zip(in_memory, on_disk, strict=True):
        tensors, metadata = load_tensors(b.path)
        assert all(tensors[n].equal(t) for n, t in a.state_dict.items())
        inputs = json.loads(metadata["inputs"])
        assert [i["digest"] for i in inputs] == [i.header.digest for i in b.inputs]
        np.testing.assert_array_equal([i["coefficient"] for i in inputs], b.coefficients)
        assert float(metadata["sigma_rel"]) == b.sigma_rel and metadata["model"] == "{}"
    assert [b.sigma_rel for b in on_disk] == [0.2, 0.03]


def test_earlier_time_uses_no_later_snapshot(walk):
    folder, _ = walk
    built = plan_targets(folder, sigma_rel=0.1, nimg=64 * 600)[0]
    assert max(info.nimg for info in built.inputs) == 64 * 600 == built.nimg


def test_time_between_snapshots_is_refused(walk):
    with pytest.raises(ValueError, match="nearest is 38400"):
        plan_targets(walk[0], sigma_rel=0.1, nimg=64 * 601)


@pytest.mark.parametrize("arguments", [{}, {"sigma_rel": 0.1, "gamma": 3.0}])
def test_lengths_are_given_one_way(walk, arguments):
    with pytest.raises(ValueError, match="one of"):
        plan_targets(walk[0], **arguments)


def test_output_into_the_snapshot_folder_is_refused(walk):
    before = sorted(walk[0].iterdir())
    with pytest.raises(ValueError, match="another folder"):
        reconstruct(walk[0], sigma_rel=0.1, out=walk[0])
    assert sorted(walk[0].iterdir()) == before


def copy_some(folder, out, count=6):
    out.mkdir()
    for info in list_snapshots(folder)[-count:]:
        shutil.copy(info.path, out)
    return out


def test_damaged_snapshot_is_named_and_nothing_is_written(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    victim = sorted(some.iterdir())[2]
    data = bytearray(victim.read_bytes())
    data[-5] ^= 4
    victim.write_bytes(data)
    with pytest.raises(ValueError, match=victim.name):
        reconstruct(some, sigma_rel=0.1, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_truncated_snapshot_is_named(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    victim = sorted(some.iterdir())[2]
    victim.write_bytes(victim.read_bytes()[:-10])
    with pytest.raises(ValueError, match=victim.name):
        list_snapshots(some)


def test_snapshots_of_two_runs_are_refused(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    other = PowerFunctionEMA({"a.weight": torch.zeros(40, 30)}, run="other")
    other.update(10)
    for path in other.save_snapshots(tmp_path / "other"):  # into this folder it would refuse
        shutil.move(path, some)
    with pytest.raises(ValueError, match="mixes runs other, walk"):
        list_snapshots(some)


def test_the_same_average_stored_twice_is_refused(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    shutil.copy(sorted(some.iterdir())[0], some / "copy.safetensors")
    with pytest.raises(ValueError, match="stored once"):
        list_snapshots(some)


def test_snapshots_of_other_shapes_are_refused(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    other = PowerFunctionEMA({"a.weight": torch.zeros(3, 3)}, run="walk")
    other.update(10)
    (path, _) = other.save_snapshots(tmp_path / "other")
    path.rename(some / path.name)
    with pytest.raises(ValueError, match="same tensors"):
        list_snapshots(some)


def test_other_safetensors_files_are_passed_over(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    save_tensors(some / "model.safetensors", {"a": torch.zeros(3)}, {"format": "edm2lite.model/1"})
    assert len(list_snapshots(some)) == 6


def test_empty_and_missing_folders_are_explained(tmp_path):
    with pytest.raises(FileNotFoundError, match="no EMA snapshot"):
        list_snapshots(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder"):
        list_snapshots(tmp_path / "nothing")


def test_renamed_files_are_read_by_what_they_say(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    for i, path in enumerate(sorted(some.iterdir())):
        path.rename(some / f"{99 - i}.safetensors")
    assert [i.nimg for i in list_snapshots(some)] == [i.nimg for i in list_snapshots(walk[0])[-6:]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_average_alone_is_what_it_is_among_many(walk, tmp_path, monkeypatch, dtype):
    lengths = [0.02, 0.031, 0.06, 0.13, 0.2, 0.25, 0.28, 0.11, 0.09, 0.17, 0.012]
    many = reconstruct(walk[0], sigma_rel=lengths, out=tmp_path / "many", dtype=dtype)
    monkeypatch.setattr("edm2lite.ema.blocks.BLOCK_BYTES", 4 * 131 * 1030)
    for whole in many:
        alone = reconstruct(walk[0], sigma_rel=whole.sigma_rel, dtype=dtype)
        tensors, _ = load_tensors(whole.path)
        # sums of float32 terms in another order, and one rounding to the type
        tolerance = {"atol": 2e-5, "rtol": torch.finfo(dtype).eps}
        assert all(
            torch.allclose(tensors[n].float(), t.float(), **tolerance)
            for n, t in alone.state_dict.items()
        )
        assert verify_reconstruction(whole.path, walk[0]) == len(alone.inputs)


def test_verification_names_what_differs(walk, tmp_path):
    some = copy_some(walk[0], tmp_path / "some")
    built = reconstruct(some, sigma_rel=0.1, out=tmp_path / "out")
    tensors, metadata = load_tensors(built.path)
    tensors["b"][3] += 0.25
    changed = {k: v for k, v in metadata.items() if "digest" not in k}
    save_tensors(tmp_path / "changed.safetensors", tensors, changed)
    with pytest.raises(ValueError, match=r"differs in 1 values, by up to 2.5e-01"):
        verify_reconstruction(tmp_path / "changed.safetensors", some)
    damaged = bytearray(built.path.read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "damaged.safetensors").write_bytes(damaged)
    with pytest.raises(ValueError, match="holds other bytes"):
        verify_reconstruction(tmp_path / "damaged.safetensors", some)
    with pytest.raises(ValueError, match="must be a file that reconstruct_ema wrote"):
        verify_reconstruction(built.inputs[0].path, some)
    victim = built.inputs[2].path
    victim.rename(some / "another name.safetensors")
    assert verify_reconstruction(built.path, some) == 6
    (some / "another name.safetensors").unlink()
    with pytest.raises(ValueError, match=f"1 are missing or damaged: {victim.name}"):
        verify_reconstruction(built.path, some)


def test_between_snapshots_the_error_is_predicted(tmp_path):
    generator = torch.Generator().manual_seed(1)
    theta = {"a": torch.randn(4000, generator=generator)}
    ema, direct = PowerFunctionEMA(theta, run="w"), PowerFunctionEMA(theta, (0.05,))
    for k in range(1, 801):
        theta["a"] += 0.01 * torch.randn(4000, generator=generator)
        ema.update(k)
        if k <= 710:
            direct.update(k)
        if k % 40 == 0:
            ema.save_snapshots(tmp_path)
    with pytest.raises(ValueError, match="nearest is 720"):
        plan_targets(tmp_path, sigma_rel=0.05, nimg=710)
    plans = plan_targets(tmp_path, sigma_rel=0.05, nimg=710, anywhere=True)
    assert max(info.nimg for info in plans[0].inputs) == 680
    (built,) = build(plans)
    truth = direct.state_dict_of(0.05)["a"]
    error = float((built.state_dict["a"] - truth).norm() / truth.norm())
    # the predicted error is the root of an expectation over 4000 walks that the fit has to guess
    assert error / 2 < built.predicted_error < 2 * error
    check_error(plans, 3 * error)
    with pytest.raises(ValueError, match=r"sigma_rel 0.05 \(.*latest snapshot is of 680"):
        check_error(plans, error / 3)


def test_windows_and_exponential_averages_match_direct_sums(tmp_path):
    generator = torch.Generator().manual_seed(2)
    theta = {"a": torch.randn(3000, generator=generator)}
    ema = PowerFunctionEMA(theta, (0.05, 0.10), run="w")
    trajectory = [theta["a"].clone()]
    for k in range(1, 801):
        theta["a"] += 0.01 * torch.randn(3000, generator=generator)
        trajectory.append(theta["a"].clone())
        ema.update(32 * k)
        if k % 10 == 0:
            ema.save_snapshots(tmp_path)
    end, steps = 32 * 800, np.arange(801) * 32
    for profile in (Window(32 * 200, end), Exponential(32 * 60, end)):
        (built,) = reconstruct(tmp_path, profiles=[profile])
        # theta_k holds until k; the exponential keeps 1e-4 of the initial weights
        weights = np.diff(profile.cumulative(steps), prepend=0)
        truth = sum(w * t.double() for w, t in zip(weights, trajectory, strict=True))
        error = (built.state_dict["a"] - truth).norm() / truth.norm()
        # a window has an edge that smooth averages cannot follow: the walk moves 3 % over a cadence
        assert error < 5e-3 and 0.5 < built.predicted_error / error < 2
        assert built.gamma is None and built.sigma_rel is None


def test_files_are_there_when_the_call_returns(walk, tmp_path):
    reconstruct(walk[0], sigma_rel=[0.06, 0.1], out=tmp_path / "out")
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["ema-0.06000-0000076800.safetensors", "ema-0.10000-0000076800.safetensors"]


@pytest.mark.parametrize("call", [reconstruct, reconstruct_each])
def test_a_wrong_path_or_length_is_told_at_the_call(walk, tmp_path, call):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        call(tmp_path / "wrong", sigma_rel=[0.1])
    with pytest.raises(ValueError, match="sigma_rel must lie between 0 and"):
        call(walk[0], sigma_rel=[0.5])


def test_one_length_gives_one_result_and_a_list_gives_a_list(walk):
    folder, _ = walk
    for argument, one in (("sigma_rel", 0.1), ("gamma", 7), ("profiles", Window(5000, 76800))):
        result = reconstruct(folder, **{argument: one})
        (listed,) = reconstruct(folder, **{argument: [one]})
        assert torch.equal(result.state_dict["a.weight"], listed.state_dict["a.weight"])
    arrays = reconstruct(folder, sigma_rel=np.array([0.03, 0.07]))
    assert [result.sigma_rel for result in arrays] == [0.03, 0.07]
    assert reconstruct(folder, sigma_rel=np.float64(0.07)).sigma_rel == 0.07


def test_lengths_that_snapshots_cannot_give_are_not_handed_over(walk, tmp_path):
    few = copy_some(walk[0], tmp_path / "few")  # 3 times out of 60
    (error,) = (plan.predicted_error for plan in plan_targets(few, sigma_rel=0.25))
    assert error > 0.02
    for call in (reconstruct, reconstruct_each):
        with pytest.raises(ValueError, match=r"at most 0.02, those of sigma_rel 0.25 .*max_error"):
            call(few, sigma_rel=[0.1, 0.25])
    with pytest.raises(ValueError, match="at most 0.02"):
        reconstruct(few, sigma_rel=[0.1, 0.25], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert reconstruct(few, sigma_rel=0.25, max_error=1).predicted_error == pytest.approx(error)


def test_averages_one_after_the_other_are_those_made_together(walk):
    lengths = [0.05, 0.12]
    together = reconstruct(walk[0], sigma_rel=lengths)
    for one, result in zip(reconstruct_each(walk[0], sigma_rel=lengths), together, strict=True):
        assert one.sigma_rel == result.sigma_rel
        torch.testing.assert_close(one.state_dict, result.state_dict, atol=2e-6, rtol=1e-6)


def test_what_a_killed_reconstruction_left_is_removed_by_the_next_one(walk, tmp_path):
    left = tmp_path / ".ema-0.20000-0000076800.safetensors.0a1b2c3d.partial"
    left.write_bytes(b"half")
    reconstruct(walk[0], sigma_rel=0.1, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["ema-0.10000-0000076800.safetensors"]
