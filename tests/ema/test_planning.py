"""Plans made before a run against runs that then happen."""

import numpy as np
import pytest
import torch

from edm2lite.ema import PowerFunctionEMA, list_snapshots, plan_targets, reconstruct
from edm2lite.ema.planning import assess, cadences, cheapest, lengths_between
from edm2lite.units import parse_range, parse_whole

LENGTHS = [0.03, 0.07, 0.15, 0.22]


@pytest.mark.parametrize("dtype, movement", [("float32", 0.3), ("float16", 0.3), ("float16", 1.0)])
def test_a_walk_gives_the_errors_and_bytes_that_were_planned(tmp_path, dtype, movement):
    steps, n = 800, 20000
    generator = torch.Generator().manual_seed(0)
    theta = {"a": torch.randn(n, generator=generator)}
    ema, direct = PowerFunctionEMA(theta), PowerFunctionEMA(theta, LENGTHS, dtype=torch.float64)
    for k in range(1, steps + 1):
        theta["a"] += movement / steps**0.5 * torch.randn(n, generator=generator)
        ema.update(k)
        direct.update(k)
        if k % 50 == 0:
            ema.save_snapshots(tmp_path, getattr(torch, dtype))
    infos = list_snapshots(tmp_path)
    for built in reconstruct(infos, sigma_rel=LENGTHS):
        plan = assess(
            (0.05, 0.1), 50, dtype, duration=steps, num_params=n,
            target_sigma_rels=built.sigma_rel, movement=movement,
        )  # fmt: skip
        truth = direct.state_dict_of(built.sigma_rel)["a"]
        # the weights grow by sqrt(1 + movement**2): the walk is relative to their length at the end
        length = (1 + movement**2) ** 0.5
        error = float((built.state_dict["a"] - truth).norm() / truth.norm()) * length
        assert error / 2 < plan.worst_error < 2 * error, (built.sigma_rel, error, plan)
    assert plan.num_files == len(infos) == 32
    assert plan.num_bytes == sum(info.header.data_bytes for info in infos)


def test_the_default_movement_is_cautious_for_a_real_run(run_dir):
    fitted = plan_targets(run_dir, sigma_rel=LENGTHS)
    for plan in fitted:
        planned = assess(
            (0.05, 0.1),
            160,
            "float32",
            duration=1280,
            num_params=1,
            target_sigma_rels=plan.sigma_rel,
        )
        assert plan.predicted_error < planned.worst_error


def test_errors_scale_with_the_movement_where_rounding_is_small():
    common = {"duration": 1 << 20, "num_params": 10, "target_sigma_rels": [0.03, 0.2]}
    one, two = (
        assess((0.05, 0.1), 1 << 16, "float32", movement=m, **common).worst_error for m in (0.5, 1)
    )
    assert two == pytest.approx(2 * one, rel=1e-3)


def test_the_worst_length_is_named():
    lengths = lengths_between(0.015, 0.25)
    assert len(lengths) == 8 and lengths[0] == 0.015 and lengths[-1] == pytest.approx(0.25)
    np.testing.assert_allclose(lengths[1:] / lengths[:-1], (0.25 / 0.015) ** (1 / 7))
    common = {"duration": 1600, "num_params": 1}
    together = assess((0.1,), 100, "float16", target_sigma_rels=lengths, **common)
    each = [
        assess((0.1,), 100, "float16", target_sigma_rels=s, **common).worst_error for s in lengths
    ]
    assert together.worst_error == pytest.approx(max(each), rel=1e-6)
    assert together.worst_sigma_rel == lengths[int(np.argmax(each))]


def test_a_cadence_that_does_not_divide_the_run_stores_its_end():
    plan = assess((0.1,), 300, "bfloat16", duration=1000, num_params=7, target_sigma_rels=0.1)
    assert plan.num_files == 4 and plan.num_bytes == 4 * 7 * 2  # 300, 600, 900, 1000
    assert cadences(2048) == [128, 64, 32, 16]


def test_the_cheapest_is_the_smallest_that_is_good_enough():
    common = {"duration": 4096, "num_params": 100, "target_sigma_rels": [0.05, 0.15]}
    choices = [
        assess((0.05, 0.1), e, d, **common) for e in (64, 256, 1024) for d in ("float32", "float16")
    ]
    for choice in choices:
        best = cheapest(choices, choice.worst_error)
        good = [c for c in choices if c.worst_error <= choice.worst_error]
        assert best in good and best.num_bytes == min(c.num_bytes for c in good)
    assert cheapest(choices, 0) is None


@pytest.mark.parametrize(
    "arguments, message",
    [
        (((0.1,), 0, "float32"), "cadence must lie"),
        (((0.1,), 2000, "float32"), "cadence must lie"),
        (((0.1,), 10, "int8"), "dtype must be"),
        (((0.4,), 10, "float16"), "0.2887"),
    ],
)
def test_unusable_plans_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        assess(*arguments, duration=1000, num_params=1, target_sigma_rels=0.1)


def test_counts_and_ranges_as_people_type_them():
    assert [parse_whole(t) for t in ("280M", "1.5B", "12K", "5000", "0.28B")] == [
        280_000_000, 1_500_000_000, 12_000, 5000, 280_000_000,
    ]  # fmt: skip
    assert parse_range("0.015:0.25") == (0.015, 0.25)
    for text in ("", "M", "280mi", "1.5", "-3M", "9e30"):
        with pytest.raises(ValueError, match="must be a whole number"):
            parse_whole(text)
    for text in ("0.1", "0.2:0.1", "0:0.1", "a:b", "0.1:0.2:0.3"):
        with pytest.raises(ValueError, match="low:high"):
            parse_range(text)
