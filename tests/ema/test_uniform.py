"""The plain mean of a run, tracked beside others, and clocks. Oracle: means in float64."""

import json

import numpy as np
import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, Window, list_snapshots, plan_targets, reconstruct

STEP, TOKENS = 80, 4096


def train(folder, *, gamma_zero=True, steps=800, **options):
    """A walk of 600 weights; weights after every update, in float64."""
    generator = torch.Generator().manual_seed(3)
    weights = {"w": torch.randn(600, generator=generator)}
    ema = PowerFunctionEMA(weights, (0.05, 0.10), uniform=gamma_zero, folder=folder, **options)
    course = []
    for step in range(1, steps + 1):
        weights["w"] += 0.02 * torch.randn(600, generator=generator)
        ema.update(step * TOKENS)
        course.append(weights["w"].double().numpy().copy())
        if step % STEP == 0:
            ema.save_snapshots()
    ema.release()
    return np.stack(course), ema


def test_the_mean_between_any_two_snapshots_is_exact(tmp_path):
    """``(b mean(b) - a mean(a)) / (b - a)`` for gamma = 0: what is left is float32 rounding.

    N updates of the tracker leave sqrt(N / 3) roundings of 2.5e-8, here 4e-7, in each mean.
    """
    course, ema = train(tmp_path / "snapshots")
    assert ema.gammas[-1] == 0 and len(list_snapshots(tmp_path)) == 30
    begins = (720, 640, 400, 80)
    windows = [Window((800 - begin) * TOKENS, 800 * TOKENS) for begin in begins]
    for begin, result in zip(begins, reconstruct(tmp_path, profiles=windows), strict=True):
        truth = course[begin:].mean(axis=0)
        error = np.linalg.norm(result.state_dict["w"].double().numpy() - truth)
        rounding = 4e-7 * 2**0.5 * 800 / (800 - begin)
        assert error < rounding * np.linalg.norm(truth)
        assert result.predicted_error < 2 * rounding


def test_two_files_give_it_by_the_identity_of_windows(tmp_path):
    """For any gamma, ``(b**(g+1) A(b) - a**(g+1) A(a)) / (b**(g+1) - a**(g+1))`` is the mean of
    [a, b] with the weight t**g."""
    course, ema = train(tmp_path / "snapshots")
    a, b = 400 * TOKENS, 800 * TOKENS
    infos = [info for info in list_snapshots(tmp_path) if info.nimg in (a, b)]
    for gamma in ema.gammas:
        early, late = (info for info in infos if info.gamma == gamma)
        scale = (a / b) ** (gamma + 1)
        values = {}
        for info in (early, late):
            values[info.nimg] = _values(info)
        mean = (values[b] - scale * values[a]) / (1 - scale)
        mass = np.diff((np.arange(400, 801) / 800) ** (gamma + 1))
        truth = (mass / mass.sum()) @ course[400:]
        assert np.linalg.norm(mean - truth) < 2e-6 * np.linalg.norm(truth)


def _values(info):
    from safetensors.torch import load_file

    return load_file(info.path)["w"].double().numpy()


def test_without_it_a_window_is_approximate(tmp_path):
    """So that the test above says something."""
    train(tmp_path / "snapshots", gamma_zero=False)
    (plan,) = plan_targets(tmp_path, profiles=Window(400 * TOKENS, 800 * TOKENS))
    assert plan.predicted_error > 1e-5


def test_the_clock_is_in_every_file_and_in_what_is_rebuilt(tmp_path):
    _, ema = train(tmp_path / "snapshots", steps=80, clock="tokens")
    assert {info.clock for info in list_snapshots(tmp_path)} == {"tokens"}
    result = reconstruct(tmp_path, sigma_rel=0.07, max_error=1)
    assert result.metadata["clock"] == "tokens"
    state = ema.state_dict()
    again = PowerFunctionEMA({"w": torch.ones(600)}, uniform=True, clock="tokens", state=state)
    assert again.nimg == 80 * TOKENS
    with pytest.raises(ValueError, match="this tracker counts images and the saved one .* tokens"):
        PowerFunctionEMA({"w": torch.ones(600)}, uniform=True, state=state)
    with pytest.raises(ValueError, match="clock must be one of images, tokens, steps"):
        PowerFunctionEMA({"w": torch.ones(1)}, clock="epochs")


def test_files_of_a_tracker_that_counts_images_are_as_before(tmp_path):
    """No key is added for the default, so that files and their digests stay as they were."""
    train(tmp_path / "snapshots", gamma_zero=False, steps=80)
    for info in list_snapshots(tmp_path):
        assert "clock" not in info.header.metadata and info.clock == "images"


def test_two_clocks_in_a_folder_are_refused(tmp_path):
    train(tmp_path / "snapshots", steps=80, run="a1")
    train(tmp_path / "other", steps=160, run="a1", clock="steps")
    for path in (tmp_path / "other").glob(f"*{160 * TOKENS}*"):
        path.rename(tmp_path / "snapshots" / path.name)
    with pytest.raises(ValueError, match="timed by one clock, .* count images and steps"):
        list_snapshots(tmp_path)


@pytest.mark.parametrize("buffered", [True, False])
def test_a_buffer_on_the_host_changes_no_bit(buffered, tmp_path):
    """The copy that updates on a GPU use, here from a CPU, against averaging at once."""
    _, plain = train(tmp_path / "plain", steps=120)
    _, other = train(tmp_path / "other", steps=120, device="cpu", buffered=buffered)
    for length, tensors in plain.state_dict()["averages"].items():
        assert torch.equal(other.state_dict()["averages"][length]["w"], tensors["w"])
    assert plain.history == other.history and json.dumps(other.history) == "[[4096, 120]]"
