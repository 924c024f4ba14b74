"""Lengths in other units, against integrals by mpmath, sums over updates, and torch's EMA."""

import math

import mpmath
import numpy as np
import pytest
import torch

from edm2lite.ema import Exponential, Length
from edm2lite.ema.formulas import SIGMA_REL_MAX, decay_to_half_life
from edm2lite.ema.lengths import MEASURES, measure
from edm2lite.units import format_amount, parse_amount


def moments(density, end):
    """Standard deviation, mean and median of an age in [0, end], by quadrature at 30 digits."""
    with mpmath.workdps(30):
        near = [0, *(mpmath.mpf(10) ** -k for k in (4, 3, 2, 1)), 0.3, 1]
        grid = [*near, *([] if end == 1 else [3, 10, end])]
        mean = mpmath.quad(lambda a: a * density(a), grid)
        square = mpmath.quad(lambda a: a**2 * density(a), grid)

        def younger(a):
            return mpmath.quad(density, [0, a / 8, a]) - mpmath.mpf(1) / 2

        median = mpmath.findroot(younger, (mean / 4, min(mean * 1.3, end)), solver="anderson")
        return [float(mpmath.sqrt(square - mean**2)), float(mean), float(median)]


@pytest.mark.parametrize("gamma", [0, 0.3, 1.8262, 6.94, 16.97, 97, 1000])
def test_measures_of_a_power_function_are_those_of_its_density(gamma):
    expected = moments(lambda a: (gamma + 1) * (1 - a) ** mpmath.mpf(gamma), 1)
    got = [measure(gamma, by) for by in MEASURES]
    # the standard deviation of the oracle cancels a few of its 30 digits, none that show here
    np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("sigma_rel", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_averages_as_long_agree_in_the_measure(sigma_rel, by):
    length = Length.of_sigma_rel(sigma_rel, by)
    place = MEASURES.index(by)
    rate = mpmath.log(2) / length.half_life
    # 100 time constants stand for an infinite past
    ema = moments(lambda a: rate * mpmath.exp(-rate * a), 100 / rate)
    width = length.window
    window = [width / math.sqrt(12), width / 2, width / 2]  # of a uniform distribution
    own = moments(lambda a: (length.gamma + 1) * (1 - a) ** mpmath.mpf(length.gamma), 1)
    np.testing.assert_allclose([ema[place], window[place]], own[place], rtol=1e-11)


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("gamma", [0.0, 1e-3, 0.7, 6.94, 97.0])
def test_every_unit_converts_back(gamma, by):
    nimg, batch = 2.0**26, 2048
    length = Length(gamma, by)
    others = [
        Length.of_half_life(length.half_life * nimg, nimg, by),
        Length.of_window(length.window * nimg, nimg, by),
        Length.of_decay(length.decay(nimg, batch), nimg, batch, by),
    ]
    if gamma:
        others.append(Length.of_sigma_rel(length.sigma_rel, by))
    # one rounding of a decay near 1, relative to 1 - decay: 1e-16 / 1e-4; and near gamma = 0 the
    # width is flat, so that its root loses half of the digits
    for other in others:
        assert abs(other.gamma - gamma) < 1e-10 * (gamma + 1) + (1e-7 if gamma < 0.01 else 0)


def test_short_power_functions_are_exponentials_of_rate_gamma_plus_one():
    gamma = 1e4
    for by in MEASURES:
        # the next term of the expansion is of the order of 1 / gamma
        assert Length(gamma, by).half_life == pytest.approx(
            math.log(2) / (gamma + 1), rel=3 / gamma
        )


def test_the_mean_of_the_run_is_the_same_window_by_every_measure():
    for by in MEASURES:
        assert Length.of_window(1000, 1000, by) == Length(0.0, by)
        assert Length(0.0, by).window == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("decay, updates", [(0.9, 300), (0.99, 3000), (0.999, 12000)])
def test_torch_holds_what_half_life_and_initial_share_say(decay, updates):
    """One average of a ramp and of its square, by torch: mean and spread of what it remembers."""
    from torch.optim.swa_utils import get_ema_multi_avg_fn

    batch = 32
    update, seen = get_ema_multi_avg_fn(decay), torch.zeros(3, dtype=torch.float64)
    for k in range(1, updates + 1):
        initial = torch.zeros((), dtype=torch.float64)
        now = torch.stack([initial + k * batch, initial + (k * batch) ** 2, initial + 1])
        update([seen], [now], k)
    nimg = updates * batch
    half_life = decay_to_half_life(decay, batch)
    length = Length.of_half_life(half_life, nimg)
    assert length.half_life * nimg == pytest.approx(half_life)
    assert length.decay(nimg, batch) == pytest.approx(decay, abs=1e-13)
    assert 1 - seen[2].item() == pytest.approx(length.initial_share, rel=1e-6)
    mean, square = (seen[:2] / seen[2]).tolist()
    # sums of steps against an integral: (1 - decay)^2 / 24 in the width, half a batch in the mean
    width = math.sqrt(square - mean**2)
    tolerance = (1 - decay) ** 2 / 10 + length.initial_share * (nimg / width) ** 2
    assert width / nimg == pytest.approx(length.sigma_rel, rel=tolerance)
    assert nimg - mean == pytest.approx(half_life / math.log(2), abs=0.6 * batch)


def test_half_of_an_ema_is_younger_than_its_half_life():
    decay, batch, nimg = 0.997, 48, 96_000
    ema = Exponential.of_decay(decay, batch, nimg)
    assert ema.cumulative(np.array(nimg - ema.half_life)) == pytest.approx(0.5, rel=1e-14)
    shares = (1 - decay) * decay ** np.arange(nimg // batch)
    younger = np.interp(ema.half_life / batch, np.arange(1, len(shares) + 1), shares.cumsum())
    assert younger == pytest.approx(0.5, abs=(1 - decay) ** 2)  # a straight line within one update


@pytest.mark.parametrize("by", MEASURES)
def test_longer_than_the_mean_of_the_run_is_refused(by):
    limit = Length(0.0, by).half_life
    assert Length.of_half_life(limit, 1, by).gamma == 0
    with pytest.raises(ValueError, match=f"at most {limit:.4g} of the training time, got 0.6"):
        Length.of_half_life(60, 100, by)
    with pytest.raises(ValueError, match="at most 1 of the training time, got 1.01"):
        Length.of_window(101, 100, by)


@pytest.mark.parametrize("bad", [0, 1, -0.1, 1.5, math.nan])
def test_decays_out_of_range_are_refused(bad):
    with pytest.raises(ValueError, match="decay must lie between 0 and 1"):
        Length.of_decay(bad, 1000, 1)
    with pytest.raises(ValueError, match="decay must lie between 0 and 1"):
        Exponential.of_decay(bad, 1, 1000)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="width, mean, median, got 'std'"):
        Length(1.0, "std")
    with pytest.raises(ValueError, match="at least 0"):
        Length(-0.5)
    with pytest.raises(ValueError, match=f"between 0 and {SIGMA_REL_MAX:.4f}"):
        Length.of_sigma_rel(0.3)
    with pytest.raises(ValueError, match="must be positive, got 0 and 1"):
        Length(1.0).decay(0, 1)
    with pytest.raises(ValueError, match="must be positive and at most"):
        Length.of_window(-1, 10)


def test_amounts_are_read_and_written():
    texts = ("500k", "1.5M", "2G", "8Mi", "1e6", "128 Ki", "7")
    values = [500e3, 1.5e6, 2e9, 2**23, 1e6, 2**17, 7]
    assert [parse_amount(text) for text in texts] == values
    for text in ("", "k", "-3", "0", "1.2.3", "5x", "1e999"):
        with pytest.raises(ValueError, match="must be a positive number"):
            parse_amount(text)
    shown = [format_amount(v) for v in (2**26, 999.9e3, 999.96e3, 12.34567, 2.5e12)]
    assert shown == ["67.11M", "999.9k", "1M", "12.35", "2500G"]
