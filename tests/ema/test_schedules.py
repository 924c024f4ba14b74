"""The schedule that an average emulates, against closed forms and published equivalences."""

import numpy as np
import pytest

from edm2lite.ema import Exponential, Length, PowerFunction, Window
from edm2lite.ema.decays import NamedDecay
from edm2lite.ema.planning import assess
from edm2lite.ema.schedules import emulated_schedule, multiplier


@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.10, 0.25])
def test_a_power_function_keeps_its_mean_of_the_budget(sigma_rel):
    profile = PowerFunction.of_width(sigma_rel, 10_000)
    schedule = emulated_schedule(profile)
    assert schedule.budget == pytest.approx(profile.mean_rel, rel=1e-6)  # Eq. 122
    assert schedule.halves_at == pytest.approx(0.5 ** (1 / (profile.gamma + 1)), rel=1e-12)
    assert multiplier(profile, 5000) == pytest.approx(1 - 0.5 ** (profile.gamma + 1))


@pytest.mark.parametrize("name", ["linear:0.2", "cosine:0.3", "1-sqrt:0.1", "square:1.0",
                                  "1-square:0.5", "power:0.5:0.2", "power:3:0.2"])  # fmt: skip
def test_a_decay_keeps_all_but_its_mean_age(name):
    decay = NamedDecay.parse(name).at(10_000)
    schedule, share = emulated_schedule(decay), decay.width / 10_000
    assert 1 - schedule.budget == pytest.approx(share * decay.shape.mean_age, rel=1e-4)
    assert 1 - schedule.halves_at == pytest.approx(share * decay.shape.median_age, rel=1e-9)


def test_windows_and_constant_decays():
    assert emulated_schedule(Window(2000, 10_000)).linear_decay == pytest.approx(0.2, rel=1e-9)
    ema = emulated_schedule(Exponential(500, 10_000))
    assert ema.halves_at == pytest.approx(0.95, rel=1e-9)
    assert 1 - ema.budget == pytest.approx(0.05 / np.log(2) * (1 - 2**-20.0), rel=1e-5)
    assert emulated_schedule(PowerFunction(0, 10_000)).linear_decay == pytest.approx(1, rel=1e-6)
    assert emulated_schedule(Exponential(20_000, 10_000)).halves_at < 1e-12


def test_lengths_of_methods_that_average_by_a_power_function():
    """sigma_rel of Eq. 123 at gamma + 1 = ln 2 / f, r + 1 and C (1 - beta1)."""
    for f, sigma_rel in ((0.01, 0.0140), (0.05, 0.0629), (0.0625, 0.0761), (0.3, 0.2212)):
        assert round(Length.of_anytime(f).sigma_rel, 4) == sigma_rel
    for c, sigma_rel in ((1, 0.2887), (2, 0.2357), (5, 0.1409), (20, 0.0454), (50, 0.0192)):
        assert round(Length.of_schedule_free(c).sigma_rel, 4) == sigma_rel
    t, half = 1000.0, 62.5  # the decay of an update is that of the growing half-life
    length = Length.of_anytime(half / t)
    assert (1 - 1e-3 / t) ** (length.gamma + 1) == pytest.approx(2 ** (-1e-3 / half), rel=1e-9)
    assert length.anytime == pytest.approx(half / t)


@pytest.mark.parametrize("by", ["width", "mean", "median"])
@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt", "square", "1-square", "power:3"])
def test_decays_and_lengths_convert_into_each_other(shape, by):
    length = Length.of_cooldown(f"{shape}:0.2", by=by)
    assert length.cooldown(shape) == pytest.approx(0.2, rel=1e-9)
    if shape == "linear":
        assert length.window == pytest.approx(0.2, rel=1e-9)
    images = Length.of_cooldown(f"{shape}:2000", nimg=10_000, by=by)
    assert images.gamma == pytest.approx(length.gamma, rel=1e-9)


def test_lengths_that_do_not_exist_are_refused():
    assert Length.of_sigma_rel(0.28).cooldown("cosine") is None
    for make, message in (
        (lambda: Length.of_anytime(0.8), "up to ln 2"),
        (lambda: Length.of_anytime(0), "up to ln 2"),
        (lambda: Length.of_schedule_free(0.5), "at least 1"),
        (lambda: Length.of_cooldown("linear:2000"), "depends on the training time"),
        (lambda: Length.of_cooldown("square:1.0", by="mean"), "no power function is longer"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_plans_name_the_decay_of_the_largest_error():
    options = {"every": 2**20, "dtype": "float32", "duration": 2**24, "num_params": 1000}
    decays = ["linear:0.25", "1-sqrt:0.05", "cosine:0.5"]
    alone = [assess((0.05, 0.1), target_decays=[d], **options).worst_error for d in decays]
    plan = assess((0.05, 0.1), target_decays=decays, target_sigma_rels=[0.08], **options)
    assert plan.worst_decay == "1-sqrt:0.05" and np.isnan(plan.worst_sigma_rel)
    assert plan.worst_error == max(alone)
    assert assess((0.05, 0.1), target_sigma_rels=[0.08], **options).worst_decay == ""
    with pytest.raises(ValueError, match="at least 1 stored average and 1 target"):
        assess((0.05, 0.1), **options)
