"""Folders with one fault each: the doctor names it and prices it; thinning keeps its promise."""

import shutil

import numpy as np
import pytest
import torch

from edm2lite.ema import PowerFunction, PowerFunctionEMA, list_snapshots, plan_targets, reconstruct
from edm2lite.ema.doctor import examine
from edm2lite.ema.planning import lengths_between
from edm2lite.ema.thinning import plan_thinning, removal_order, remove
from edm2lite.tensorfile import load_tensors, save_tensors

LENGTHS = lengths_between(0.03, 0.2, 5)


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """A random walk of 2000 elements: 24 snapshot times of (.05, .10); LENGTHS tracked directly."""
    folder = tmp_path_factory.mktemp("walk") / "snapshots"
    generator = torch.Generator().manual_seed(0)
    theta = {"a": torch.randn(40, 50, generator=generator), "n": torch.tensor(3)}
    ema = PowerFunctionEMA(theta, run="walk")
    direct = PowerFunctionEMA(theta, [float(s) for s in LENGTHS])
    for k in range(1, 601):
        theta["a"] += 0.01 * torch.randn(40, 50, generator=generator)
        ema.update(64 * k)
        direct.update(64 * k)
        if k % 25 == 0:
            ema.save_snapshots(folder)
    return folder, direct


@pytest.fixture
def folder(walk, tmp_path):
    return shutil.copytree(walk[0], tmp_path / "snapshots")


def name(sigma_rel, k):
    return f"ema-{sigma_rel:.5f}-{1600 * k:010d}.safetensors"


def only_finding(folder, **options):
    report = examine(folder, LENGTHS, **options)
    assert len(report.findings) == 1, [f.message for f in report.findings]
    return report.findings[0], report


def test_an_intact_folder_has_no_finding_and_the_errors_of_the_plan(walk):
    report = examine(walk[0], LENGTHS)
    assert not report.findings and len(report.intact) == len(report.files) == 48
    plans = plan_targets(walk[0], sigma_rel=LENGTHS)
    np.testing.assert_allclose(report.errors, [p.predicted_error for p in plans], rtol=1e-9)


@pytest.mark.parametrize("size", [0, 5, 100, 300, -4000, -1])
def test_a_file_cut_anywhere_is_named_and_priced(folder, size):
    victim = folder / name(0.1, 20)
    victim.write_bytes(victim.read_bytes()[:size])
    report = examine(folder, LENGTHS)
    (damaged,) = (f for f in report.findings if f.path is not None)
    assert damaged.path == victim and victim.name in damaged.message
    # a file that lost its header does not say what it was; then its place is found empty
    (priced,) = (f for f in report.findings if f.lost)
    assert [(p.nimg, round(p.sigma_rel, 9)) for p in priced.lost] == [(32000, 0.1)]
    assert priced.error > 1.001 * priced.error_if_intact
    assert damaged.state == ("truncated" if size < 0 else "damaged")


@pytest.mark.parametrize("byte, quick_sees_it", [(3, True), (40, True), (300, True), (-3, False)])
def test_a_flipped_bit_is_found(folder, byte, quick_sees_it):
    victim = folder / name(0.05, 7)
    data = bytearray(victim.read_bytes())
    data[byte] ^= 16
    victim.write_bytes(data)
    report = examine(folder, LENGTHS)
    assert [f.path for f in report.findings if f.path] == [victim]
    assert bool(examine(folder, LENGTHS, quick=True).findings) == quick_sees_it


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_values_that_are_not_finite_are_found(folder, value):
    victim = folder / name(0.05, 24)
    tensors, metadata = load_tensors(victim)
    tensors["a"][17, 3] = value
    kept = {k: v for k, v in metadata.items() if "digest" not in k}
    save_tensors(victim, tensors, kept)
    finding, _ = only_finding(folder)
    assert finding.state == "not finite" and finding.path == victim and " in a;" in finding.message
    assert finding.error > finding.error_if_intact
    tensors["a"].fill_(value)  # whole: the sample that errors are learned from sees it too
    save_tensors(victim, tensors, kept)
    finding, report = only_finding(folder, quick=True)
    assert victim.name in finding.message and not len(report.errors)


def test_snapshots_of_another_run_are_found(folder, tmp_path):
    other = PowerFunctionEMA({"a": torch.ones(40, 50), "n": torch.tensor(3)}, [0.07], run="b")
    other.update(1600)
    (path,) = other.save_snapshots(tmp_path / "elsewhere")  # here they are refused
    path = path.rename(folder / path.name)
    finding, report = only_finding(folder)
    assert finding.state == "other run" and finding.path == path and "of run b" in finding.message
    assert not finding.lost and len(report.intact) == 48


def test_snapshots_of_other_shapes_are_found(folder):
    other = PowerFunctionEMA({"a": torch.ones(3, 3)}, [0.07], run="walk")
    other.update(1600)
    (path,) = other.save_snapshots(folder)
    finding, _ = only_finding(folder)
    assert finding.state == "other shapes" and finding.path == path and not finding.lost


def test_a_reconstruction_among_the_snapshots_is_found(folder, tmp_path):
    built = reconstruct(folder, sigma_rel=0.08, out=tmp_path / "out")
    shutil.copy(built.path, folder)
    finding, _ = only_finding(folder)
    assert finding.state == "other format" and finding.path == folder / built.path.name


@pytest.mark.parametrize("same", [True, False])
def test_duplicates_are_found(folder, same):
    copy = folder / "zz.safetensors"
    tensors, metadata = load_tensors(folder / name(0.05, 3))
    tensors["a"] += 0 if same else 1
    save_tensors(copy, tensors, {k: v for k, v in metadata.items() if "digest" not in k})
    finding, _ = only_finding(folder)
    assert finding.state == "duplicate" and finding.path == copy and not finding.lost
    assert ("OTHER values" in finding.message) != same


def test_the_intact_one_of_two_copies_serves(folder):
    victim = folder / name(0.05, 3)
    shutil.copy(victim, folder / "zz.safetensors")
    victim.write_bytes(victim.read_bytes()[:-1] + b"\1")
    finding, report = only_finding(folder)
    assert finding.path == victim and not finding.lost and len(report.intact) == 48


def test_missing_files_are_found_and_priced(folder):
    (folder / name(0.1, 10)).unlink()
    for k in (15, 16):
        for sigma_rel in (0.05, 0.1):
            (folder / name(sigma_rel, k)).unlink()
    report = examine(folder, LENGTHS)
    one, two = report.findings
    assert "sigma_rel 0.1 is missing at nimg = 16000" in one.message
    assert "2 times from nimg = 24000 to 25600" in two.message
    assert {p.nimg for p in two.lost} == {24000, 25600} and len(two.lost) == 4
    assert two.error > 2 * two.error_if_intact > 0  # a hole of 3 steps in the middle
    assert two.sigma_rel == LENGTHS[4] and two.error == pytest.approx(report.errors[4])


def test_keeping_only_the_last_is_found(folder):
    for info in list_snapshots(folder)[:30]:
        info.path.unlink()
    finding, _ = only_finding(folder)
    assert "15 times from nimg = 1600 to 24000" in finding.message
    assert finding.error > 5 * finding.error_if_intact


def test_a_cadence_between_multiples_of_the_batch_is_regular(tmp_path):
    theta = {"a": torch.randn(30, generator=torch.Generator().manual_seed(0))}
    ema = PowerFunctionEMA(theta)
    for k in range(1, 200):
        theta["a"] += 0.01
        ema.update(64 * k)
        if 64 * k // 160 > 64 * (k - 1) // 160:  # every 160 images: steps of 128 and 192
            ema.save_snapshots(tmp_path)
    assert not examine(tmp_path, LENGTHS).findings


def test_a_folder_with_nothing_intact_is_described(folder):
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:-3])
    report = examine(folder, LENGTHS)
    assert not report.intact and not len(report.errors) and len(report.findings) == 48


def test_removal_order_is_that_of_trying_each():
    generator = np.random.default_rng(0)
    have = np.cumsum(generator.normal(size=(9, 30)), axis=0)
    want = have[-1] + generator.normal(size=(2, 30))

    def error(kept):
        differences = have[[i for i in kept if i != 8]] - have[8]
        x = np.linalg.lstsq(differences.T, (want - have[8]).T, rcond=None)[0]
        return np.linalg.norm(x.T @ differences - (want - have[8]), axis=1).max()

    order = removal_order(have, want, [0, 1, 2, 3, 4, 5, 7], 1e9)
    kept = list(range(9))
    for removed in order:
        errors = {i: error([k for k in kept if k != i]) for i in kept if i not in (6, 8)}
        assert removed == min(errors, key=errors.get)
        kept.remove(removed)
    assert kept == [6, 8]
    limit = error([0, 1, 2, 6, 8])
    some = removal_order(have, want, range(8), limit)
    assert error([k for k in range(9) if k not in some]) <= limit * (1 + 1e-12)


def test_thinning_keeps_its_promise(walk, folder):
    limit = 4e-3
    infos = list_snapshots(folder)
    gone, promised = plan_thinning(infos, LENGTHS, limit)
    assert 10 < len(gone) < 44 and promised <= limit
    assert all(info.nimg < infos[-1].nimg for info in gone)
    before = sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    assert remove(gone) == before - sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    report = examine(folder, LENGTHS)
    assert not report.findings and report.num_thinned == len(gone)
    assert report.errors.max() <= limit
    for built in reconstruct(folder, sigma_rel=LENGTHS):
        truth = walk[1].state_dict_of(built.sigma_rel)["a"]
        error = (built.state_dict["a"] - truth).norm() / truth.norm()
        assert error < 2 * limit, built.sigma_rel  # the prediction is good to some ten percent
    with pytest.raises(ValueError, match="limit must be at least"):
        plan_thinning(list_snapshots(folder), LENGTHS, 1e-5)


def test_thinning_of_200_snapshots_is_quick():
    """One QR a round: a second or two where solving for each candidate would take minutes."""
    from time import perf_counter

    from edm2lite.ema.solve import responses
    from edm2lite.ema.trajectory import TrajectoryModel

    sources = [PowerFunction(g, 1000 * k) for k in range(1, 101) for g in (16.97, 6.94)]
    model = TrajectoryModel(100000, 1000, np.zeros(0), np.ones(1), np.zeros(1), np.zeros(1))
    targets = [PowerFunction.of_width(s, 100000) for s in LENGTHS]
    have, want, noise = responses(sources, targets, model, 2e-4)
    have = np.concatenate([have, noise], axis=1)
    want = np.concatenate([want, np.zeros((len(want), noise.shape[1]))], axis=1)
    begin = perf_counter()
    order = removal_order(have, want, range(198), 0.02)
    assert len(order) > 100 and perf_counter() - begin < 20
