"""Which of very many snapshots plans are made from: the oracle is the plan from all of them."""

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from edm2lite.ema import PowerFunctionEMA, list_snapshots, plan_targets, reconstruct
from edm2lite.ema.calibration import fit_model
from edm2lite.ema.doctor import examine
from edm2lite.ema.planning import random_walk
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.selection import select_sources
from edm2lite.ema.solve import solve_calibrated
from edm2lite.ema.thinning import plan_thinning
from edm2lite.ema.trajectory import TrajectoryModel
from edm2lite.tools.reconstruct_ema import main as command

END = 2**24
ONE, NONE = np.ones(1), np.zeros(1)
WALK = random_walk(END, END // 400)
EXCURSIONS = TrajectoryModel(
    END, END // 400, NONE[:0], 0.05 * ONE, NONE, 1e-3 * ONE, 0.1, 0.0, END // 2048
)
SMOOTH = TrajectoryModel(
    END, END // 400, NONE[:0], 0.1 * ONE, NONE, NONE, 0.1, 0.004 * END, END // 2048
)


def stored(times, widths):
    return [PowerFunction.of_width(s, int(t)) for t in times for s in widths]


def even(count):
    return np.round(np.arange(1, count + 1) * (END / count))


def uneven(count):
    """Dense in the middle, with a hole after it."""
    steps = np.random.default_rng(1).exponential(size=count) + 0.2
    steps[: count // 4] *= 3
    steps[count // 2] *= count / 10
    return np.round(np.cumsum(steps) / steps.sum() * END)


@pytest.mark.parametrize(
    "times, widths, model, rounding",
    [
        (even(200), (0.05, 0.10), WALK, 2.05e-4),
        (uneven(200), (0.05, 0.10), EXCURSIONS, 2.5e-8),
        (even(400), (0.10,), SMOOTH, 2.05e-4),
        (uneven(130), (0.03, 0.05, 0.15), WALK, 2.05e-4),
    ],
    ids=["walk", "uneven", "one length", "three lengths"],
)
def test_the_chosen_ones_are_as_good_as_all(times, widths, model, rounding):
    """Up to 5 %, or far below what float16 can hold: random lengths, shortest and longest.

    Here half as many are chosen as plans take, so that all together are quickly solved for.
    """
    sources = stored(times, widths)
    lengths = np.exp(np.random.default_rng(0).uniform(np.log(0.003), np.log(0.28), 12))
    targets = [PowerFunction.of_width(s, END) for s in [0.001, *lengths, 0.2886]]
    chosen = [sources[i] for i in select_sources(sources, 256)]
    assert len(chosen) <= 256 < len(sources)
    by_all = solve_calibrated(sources, targets, model, rounding).predicted_error
    found = solve_calibrated(chosen, targets, model, rounding).predicted_error
    assert (found <= np.maximum(1.05 * by_all, 1e-4)).all(), found / by_all


@pytest.mark.parametrize("seed", range(8))
def test_ends_are_always_chosen_and_the_limit_is_kept(seed):
    rng = np.random.default_rng(seed)
    times = np.unique(rng.integers(1, 10**6, rng.integers(100, 5000)))
    widths = rng.permutation([0.02, 0.05, 0.10, 0.2])[: rng.integers(1, 5)]
    sources = stored(times, widths)
    limit = int(rng.integers(2 * len(widths), 600))
    chosen = select_sources(sources, limit)
    assert (np.diff(chosen) > 0).all() and len(chosen) <= max(limit, 2 * len(widths))
    if len(sources) > limit:
        assert len(chosen) > 0.7 * limit or len(chosen) == len(sources)
    for width in widths:
        track = [sources[i].nimg for i in chosen if abs(sources[i].sigma_rel - width) < 1e-9]
        assert {times[0], times[-1]} <= set(track)


@pytest.fixture(scope="module")
def long_run(tmp_path_factory):
    """60 moments of two averages."""
    folder = tmp_path_factory.mktemp("long")
    torch.manual_seed(0)
    weights = {"w": torch.randn(60)}
    ema = PowerFunctionEMA(weights)
    for step in range(1, 61):
        weights["w"] += 0.05 * torch.randn(60)
        ema.update(64 * step)
        ema.save_snapshots(folder)
    return folder


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr("edm2lite.ema.selection.MAX_SOURCES", 64)


def test_plans_say_how_many_snapshots_they_use(long_run, few):
    counts = []
    (plan,) = plan_targets(
        long_run, sigma_rel=0.07, progress=lambda done, total: counts.append((done, total))
    )
    assert (len({i.path for i in plan.inputs}), plan.num_stored) == (len(plan.inputs), 120)
    assert 50 < len(plan.inputs) <= 64 and plan.inputs[-1].nimg == 3840
    assert counts[119] == (120, 120) and counts[-1][0] == counts[-1][1] >= len(plan.inputs)
    result = reconstruct(long_run, sigma_rel=0.07)
    assert np.array_equal(result.coefficients, plan.coefficients) and plan.predicted_error < 0.02
    run = CliRunner().invoke(command, [str(long_run), "--sigma-rel", "0.07", "--dry-run"])
    assert f"{len(plan.inputs)} of 120 snapshots are used" in run.stderr


def test_the_model_of_the_weights_is_the_one_of_all_snapshots(long_run, few, monkeypatch):
    infos = list_snapshots(long_run)
    by_few = fit_model(infos)
    monkeypatch.undo()
    by_all = fit_model(infos)
    for name in ("walk", "white", "excursion", "edges"):
        assert np.array_equal(getattr(by_few, name), getattr(by_all, name)), name
    assert (by_few.misfit, by_few.doubt) == (by_all.misfit, by_all.doubt)


def test_thinning_and_the_doctor_take_the_chosen_ones(long_run, few):
    counts = []
    report = examine(
        long_run, [0.05, 0.15], quick=True, headers=lambda *count: counts.append(count)
    )
    assert counts[-1] == (120, 120) and not report.findings and (report.errors < 0.02).all()
    unneeded, error = plan_thinning(report.intact, np.array([0.15]), max_error=0.02)
    assert len(unneeded) > 56 and error <= 0.02
    kept = [info for info in list_snapshots(long_run) if info not in unneeded]
    (plan,) = plan_targets(kept, sigma_rel=0.15)
    assert plan.predicted_error <= 0.02 and plan.num_stored == len(plan.inputs) == len(kept)


def test_planning_a_run_of_very_many_snapshots_is_quick():
    from edm2lite.ema.planning import assess

    plan = assess(
        (0.05, 0.10), every=2**14, dtype="float16", duration=2**26, num_params=10**6,
        target_sigma_rels=[0.04, 0.15],
    )  # fmt: skip
    assert plan.num_files == 8192 and plan.worst_error < 1e-3
