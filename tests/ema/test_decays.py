"""Oracles: the multipliers in mpmath, sums over every step, and runs that are really decayed."""

import mpmath
import numpy as np
import pytest
import torch

from edm2lite.ema import PowerFunction, PowerFunctionEMA, Window, plan_targets, reconstruct
from edm2lite.ema.decays import SHAPES, DecayShape, NamedDecay, parse_decays
from edm2lite.ema.planning import random_walk
from edm2lite.ema.rates import RateDecay, RecordedRate, follow, read_rates
from edm2lite.ema.solve import solve_calibrated, solve_paper

MULTIPLIERS = {  # as people write them down
    "linear": lambda s: 1 - s,
    "cosine": lambda s: (1 + mpmath.cos(mpmath.pi * s)) / 2,
    "1-sqrt": lambda s: 1 - mpmath.sqrt(s),
    "square": lambda s: (1 - s) ** 2,
    "1-square": lambda s: 1 - s**2,
    "power:0.5": lambda s: mpmath.sqrt(1 - s),
    "power:3": lambda s: (1 - s) ** 3,
    "power:7.25": lambda s: (1 - s) ** mpmath.mpf(7.25),
}
T = 1600


def shape(name):
    return NamedDecay.parse(f"{name}:0.5").shape


def sources(count=16, widths=(0.05, 0.10)):
    return [PowerFunction.of_width(s, T * k // count) for k in range(1, count + 1) for s in widths]


def test_every_named_shape_has_an_oracle():
    assert {name.partition(":")[0] for name in MULTIPLIERS} == set(SHAPES)


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_cumulative_weights_are_one_minus_the_multiplier(name):
    s = np.concatenate([np.linspace(0, 1, 201), np.geomspace(1e-12, 1e-3, 40)])
    found = shape(name).cumulative(s)
    with mpmath.workdps(40):
        exact = np.array([float(1 - MULTIPLIERS[name](mpmath.mpf(x))) for x in s])
    assert np.abs(found - exact).max() < 1e-12
    assert (shape(name).cumulative([-0.5, 0, 1, 1.5]) == [0, 0, 1, 1]).all()


@pytest.mark.parametrize("name", MULTIPLIERS)
def test_ages_are_integrals_of_the_multiplier(name):
    """With age a = 1 - s: E a = int P ds, E a**2 = 2 int (1 - s) P ds, by parts."""
    with mpmath.workdps(25):
        weight = lambda s: 1 - MULTIPLIERS[name](s)  # noqa: E731
        mean = mpmath.quad(weight, [0, 0.01, 0.5, 0.99, 1])
        square = mpmath.quad(lambda s: 2 * (1 - s) * weight(s), [0, 0.01, 0.5, 0.99, 1])
        middle = mpmath.findroot(lambda s: weight(s) - 0.5, (0.01, 0.99), solver="anderson")
    one = shape(name)
    assert one.mean_age == pytest.approx(float(mean), abs=1e-9)
    assert one.deviation == pytest.approx(float(mpmath.sqrt(square - mean**2)), abs=1e-9)
    assert one.median_age == pytest.approx(float(1 - middle), abs=1e-9)


def test_names_have_one_form_whatever_is_typed():
    spellings = {
        "linear:0.2": ["linear:20%", "linear:0.20", " linear:2e-1"],
        "square:0.2": ["(1-s)^2:0.2", "(1-s)**2:20%"],
        "1-square:4194304": ["1-s^2:4Mi", "1-s^2:4194304"],
        "power:3:0.25": ["power:3.0:25%"],
        "cosine:0.05k": ["cosine:0.05k"],
        "1-sqrt:1.0": ["1-sqrt:1", "1-sqrt:100%"],
    }
    for name, typed in spellings.items():
        assert {str(NamedDecay.parse(text)) for text in [name, *typed]} == {name}
    assert NamedDecay.parse("cosine:0.05k").at(4000).width == 50
    assert parse_decays("linear:0.1:0.3:0.1,power:2:0.1:0.2:0.1,linear:10%") == [
        "linear:0.1", "linear:0.2", "linear:0.3", "power:2:0.1", "power:2:0.2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text, message",
    [
        ("linear", "length of a decay"),
        ("liner:0.2", "must be one of linear"),
        ("linear:20", "could be 20 % or 20 images"),
        ("linear:120%", "at most the whole run"),
        ("linear:0", "must end in the length"),
        ("linear:-0.2", "must end in the length"),
        ("linear:nan", "must end in the length"),
        ("linear:", "must end in the length"),
        ("power:2", "length of a decay"),
        ("power:0.2", "between 0.5 and 16"),
        ("power:x:0.2", "must be power:K:LENGTH"),
        ("power:99:0.2", "between 0.5 and 16"),
        ("power:nan:0.2", "between 0.5 and 16"),
        ("linear:0.3:0.1:0.1", "start <= end"),
        ("linear:0.1:0.2", "its length"),
        ("x" * 5000, "must be the name of a decay"),
        ("", "must be one of linear"),
    ],
)
def test_what_is_no_decay_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match="(?s)^(?!.*\n).*" + message.replace("+", r"\+")) as error:
        parse_decays(text)
    assert len(str(error.value)) < 300


def test_a_decay_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match="begin within the run"):
        NamedDecay.parse("linear:4Mi").at(64_000)


@pytest.mark.parametrize("decay", ["linear:0.25", "1-sqrt:0.3", "cosine:0.1", "power:5:1.0"])
def test_the_average_of_recorded_weights_is_the_run_with_its_updates_weakened(decay):
    """Exactly so for recorded updates: sum_j c_j theta_j = theta_0 + sum_i w_i (update i)."""
    rng = np.random.default_rng(0)
    updates = rng.standard_normal((T, 20))
    weights = 3 + np.concatenate([np.zeros((1, 20)), np.cumsum(updates, axis=0)])
    schedule = 1 - NamedDecay.parse(decay).at(T).cumulative(np.arange(T))  # of the update from t on
    shares = np.diff(np.append(1, np.append(schedule, 0)), prepend=1)[1:] * -1
    assert shares.min() >= 0 and shares.sum() == pytest.approx(1, abs=1e-12)
    merged = shares @ weights
    decayed = 3 + schedule @ updates
    np.testing.assert_allclose(merged, decayed, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["linear:0.25", "cosine:0.1", "1-sqrt:0.25", "square:0.5",
                                  "1-square:0.3", "power:0.5:0.25", "linear:1.0"])  # fmt: skip
def test_predicted_errors_are_sums_over_fine_steps(name):
    """Of a random walk: the mean square of the error of the profile, faster before the first."""
    decay, stored = NamedDecay.parse(name).at(T), sources()
    solution = solve_calibrated(stored, [decay], random_walk(T, T // 16), 0.0)
    t = (np.arange(200 * T) + 0.5) / 200
    x = solution.coefficients[:, 0]
    error = sum(c * s.cumulative(t) for c, s in zip(x, stored, strict=True)) - decay.cumulative(t)
    exact = np.sqrt(np.mean(error**2 * np.maximum(1, T / 16 / t)))
    tolerance = 3e-3 if name == "linear:1.0" else 5e-4  # the walk is fastest at t = 0
    assert solution.predicted_error[0] == pytest.approx(exact, rel=tolerance)


def test_a_linear_decay_is_a_window():
    model, stored = random_walk(T, T // 16), sources()
    decay, window = NamedDecay.parse("linear:400").at(T), Window(400, T)
    one, other = (solve_calibrated(stored, [p], model, 1e-8) for p in (decay, window))
    np.testing.assert_array_equal(one.coefficients, other.coefficients)
    assert one.predicted_error == other.predicted_error


@pytest.mark.parametrize("solve", [solve_calibrated, solve_paper])
def test_what_a_decay_gets_does_not_depend_on_the_others(solve):
    model, stored = random_walk(T, T // 16), sources(8)
    names = ["linear:0.25", "cosine:0.25", "1-sqrt:0.1"]
    targets = [NamedDecay.parse(name).at(T) for name in names]
    targets.insert(1, PowerFunction.of_width(0.07, T))
    together = solve(stored, targets, model, 1e-8)
    for r, target in enumerate(targets):
        alone = solve(stored, [target], model, 1e-8)
        np.testing.assert_array_equal(alone.coefficients[:, 0], together.coefficients[:, r])
        assert alone.predicted_error[0] == together.predicted_error[r]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A run whose weights walk at random, with 12 snapshots of two averages, and all its steps."""
    run = tmp_path_factory.mktemp("walk")
    generator = torch.Generator().manual_seed(1)
    weights = {"w": 10 + torch.randn(400, generator=generator)}
    ema, steps = PowerFunctionEMA(weights, folder=run / "snapshots"), []
    for step in range(1, 1201):
        weights["w"] += 0.02 * torch.randn(400, generator=generator)
        ema.update(64 * step)
        steps.append(weights["w"].double().numpy().copy())
        if step % 100 == 0:
            ema.save_snapshots()
    return run, np.stack(steps)


def direct(profile, steps):
    edges = 64 * np.arange(len(steps) + 1)
    return np.diff(profile.cumulative(edges)) @ steps


def test_rebuilt_decays_are_off_by_what_is_predicted(walk):
    run, steps = walk
    names = ["linear:0.25", "cosine:0.25", "square:0.4", "1-sqrt:0.25", "1-s^2:19200"]
    results = reconstruct(run, decay=names)
    assert [r.decay for r in results] == [*names[:4], "1-square:19200"]
    for result in results:
        assert result.sigma_rel is None and result.gamma is None
        assert result.metadata["decay"] == result.decay and "sigma_rel" not in result.metadata
        exact = direct(result.profile, steps)
        found = result.state_dict["w"].double().numpy()
        actual = np.linalg.norm(found - exact) / np.linalg.norm(exact)
        assert 0.6 < result.predicted_error / actual < 1.6  # 400 weights: 4 % by chance


def test_a_decay_gives_the_same_bits_alone_and_in_a_list(walk):
    run, _ = walk
    alone = reconstruct(run, decay="cosine:0.25")
    (_, listed) = reconstruct(run, decay=["linear:0.1", "cosine:25%"])
    assert alone.metadata == listed.metadata
    assert torch.equal(alone.state_dict["w"], listed.state_dict["w"])


def test_the_paper_s_solver_is_refused_where_squares_have_no_integral(walk):
    run, _ = walk
    for name in ("1-sqrt:0.2", "power:0.5:0.2"):
        with pytest.raises(ValueError, match="must be calibrated"):
            plan_targets(run, decay=name, solver="paper")
    assert plan_targets(run, decay="linear:0.2", solver="paper")[0].predicted_error < 0.01


# where the recorded rate was not constant


def rate(*pairs):
    return RecordedRate(*map(np.array, zip(*pairs, strict=True)), "lr.csv")


def test_multipliers_are_wanted_over_recorded_rates():
    recorded = rate((0, 0.1), (1000, 0.4), (3000, 0.4), (4000, 0.1))
    profile = follow(NamedDecay.parse("linear:0.5").at(4000), recorded)
    t = np.array([0, 1000, 2000, 2500, 3000, 3500, 3999.0, 4000])
    wanted = np.array([0, 0, 0.4, 0.3, 0.2, 0.1, 0.0002, 0])
    actual = recorded.at(t)
    expected = np.where(t <= 2000, 1, wanted / actual)
    np.testing.assert_allclose(1 - profile.cumulative(t), expected, atol=1e-12)
    assert profile.largest_rise == 0
    assert {2000.0, 3000.0} <= set(profile.kinks)


def test_a_constant_rate_changes_nothing():
    decay = NamedDecay.parse("cosine:0.5").at(4000)
    assert follow(decay, rate((0, 0.0), (1500, 0.3), (4000, 0.3))) is decay
    assert follow(decay, None) is decay
    assert isinstance(follow(decay, rate((0, 0.3), (4000, 0.2))), RateDecay)


def test_an_average_stays_what_it_is_when_the_run_goes_on():
    """Its profile is in the identity of a model, which folders of images and adapters know."""
    decay = NamedDecay.parse("linear:0.5").at(4000)
    records = [(0, 0.1), (1500, 0.4), (2500, 0.4), (4000, 0.3)]
    now = follow(decay, rate(*records))
    later = follow(decay, rate(*records, (5000, 0.2), (6000, 0.1)))
    assert repr(now) == repr(later) and repr(now) != repr(follow(decay, rate(*records[2:])))
    t = np.linspace(0, 4000, 999)
    whole = RateDecay(decay, rate(*records)).cumulative(t)
    np.testing.assert_array_equal(now.cumulative(t), whole)


def test_a_rate_that_falls_faster_than_the_decay_gives_signs_and_a_warning(walk, caplog):
    run, steps = walk
    recorded = rate((0, 1.0), (64 * 800, 1.0), (64 * 1000, 0.3), (64 * 1200, 0.3))
    slow = rate((0, 1.0), (64 * 800, 1.0), (64 * 1200, 0.8))
    (plan,) = plan_targets(run, decay="linear:0.5", lr_log=slow)
    assert plan.profile.largest_rise < 1e-9 and not caplog.records
    (plan,) = plan_targets(run, decay="cosine:0.4", lr_log=recorded)
    (record,) = caplog.records
    w = plan.profile.multiplier(np.linspace(0, 76800, 30001))
    rise = np.maximum(np.diff(w), 0).sum()
    assert rise > 0.05 and plan.profile.largest_rise == pytest.approx(rise, rel=1e-2)
    assert f"rises by {plan.profile.largest_rise:.2g}" in record.getMessage()
    result = reconstruct(run, decay="cosine:0.4", lr_log=recorded)
    exact = direct(result.profile, steps)
    actual = np.linalg.norm(result.state_dict["w"].double().numpy() - exact)
    assert 0.5 < result.predicted_error / (actual / np.linalg.norm(exact)) < 2


def test_what_cannot_be_met_is_refused():
    decay = NamedDecay.parse("linear:0.5").at(4000)
    with pytest.raises(ValueError, match="has 0 at 3[0-9]{3} images; let the average end before"):
        follow(decay, rate((0, 1.0), (3000, 0.0), (4000, 0.0)))
    with pytest.raises(ValueError, match="up to the end of the decay"):
        follow(decay, rate((0, 1.0), (3000, 0.9)))
    zero_at_the_end = follow(decay, rate((0, 1.0), (2000, 1.0), (4000, 0.0)))
    assert zero_at_the_end.multiplier([3000, 3999, 4000]).round(9).tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("lr.csv", "", "columns nimg and lr"),
        ("lr.csv", "step,rate\n1,2\n", "found step, rate"),
        ("lr.csv", "nimg,lr\n", "holds none"),
        ("lr.csv", "nimg,lr\n1,0.1\n2,x\n", "line 3 has '2', 'x'"),
        ("lr.csv", "nimg,lr\n1\n", "line 2"),
        ("lr.csv", "nimg,lr\n1,nan\n", "finite rates"),
        ("lr.csv", "nimg,lr\n1,-0.1\n", "at least 0"),
        ("lr.csv", b"\xff\xfe\x00nimg", "UTF-8"),
        ("lr.jsonl", '{"nimg": 1}\n', "holds none"),
    ],
)
def test_a_file_without_rates_is_refused_in_one_line(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match="^[^\n]*" + message):
        read_rates(path)


def test_rates_are_read_from_csv_and_json_lines(tmp_path):
    (tmp_path / "a.csv").write_text("lr, nimg, loss\n0.2,1000,1\n0.1,500,2\n0.3,1000,1\n")
    (tmp_path / "a.jsonl").write_text('{"nimg": 500, "lr": 0.1}\n{"nimg": 1000, "lr": 0.3}\nx\n')
    one, other = read_rates(tmp_path / "a.csv"), read_rates(tmp_path / "a.jsonl")
    assert one.at([0, 750, 2000]).tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert repr(one) == repr(other)
    with pytest.raises(FileNotFoundError, match="no learning rates"):
        read_rates(tmp_path / "b.csv")


def test_shapes_are_checked_in_python_too():
    with pytest.raises(ValueError, match="must lie between 1 and 1"):
        DecayShape("linear", 2.0)
