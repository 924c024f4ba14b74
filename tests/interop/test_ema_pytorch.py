"""Folders that ema-pytorch itself writes, against the weights it really averaged."""

import os

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

from edm2lite.ema import PowerFunctionEMA, list_snapshots, reconstruct, sigma_rel_to_gamma
from edm2lite.ema.doctor import examine
from edm2lite.interop.ema_pytorch import import_folder
from edm2lite.tensorfile import load_tensors
from edm2lite.tools.edm2lite import main as edm2lite

pytest.importorskip("ema_pytorch", reason="pip install 'edm2lite[test]'")


class Weights(nn.Module):
    """A vector that training writes to, and a BatchNorm with its counter."""

    def __init__(self, n):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(n))
        self.norm = nn.BatchNorm1d(2)


def train(folder, net, values, *, observe=lambda k: None, save_every=100, **options):
    """Run PostHocEMA over the given values of ``net.a``, one call each."""
    from ema_pytorch import PostHocEMA

    ema = PostHocEMA(
        net, checkpoint_every_num_steps=save_every, checkpoint_folder=str(folder), **options
    )
    for k, value in enumerate(values, 1):
        net.a.data.copy_(value)
        ema.update()
        observe(k)
    return folder


@pytest.mark.parametrize("every, batch_size", [(1, 1), (1, 32), (2, 3), (4, 32), (10, 7)])
def test_snapshots_record_the_profile_that_was_tracked(tmp_path, every, batch_size):
    """One-hot weights: the average is the share that each call has in it."""
    calls, gammas = 600, (60.0, 25.0)
    train(
        tmp_path / "lr", Weights(calls), torch.eye(calls), gammas=gammas, update_every=every,
        checkpoint_dtype=torch.float32,
    )  # fmt: skip
    import_folder(
        tmp_path / "lr", tmp_path / "run", gammas=gammas, update_every=every, batch_size=batch_size
    )
    infos = list_snapshots(tmp_path / "run")
    assert len(infos) == 12
    for info in infos:
        shares = load_tensors(info.path)[0]["a"].double().numpy()
        step = int(info.header.metadata["source"].split(".")[1])
        updates = np.arange(0, step, every)
        # the share of a call and all before it, at the end of the stretch that it stands for
        ends = info.nimg - (updates[-1] - updates) * batch_size
        # exact for every = 1; else half an image of rounding, and terms in 1 / updates squared
        rest = (0.25 / info.nimg + 0.04 / len(updates) ** 2) * (info.gamma + 1)
        tolerance = 1e-6 if every == 1 else rest
        found = np.cumsum(shares)[updates]
        np.testing.assert_allclose(found, info.profile.cumulative(ends), atol=tolerance)
        assert sum(stride * n for stride, n in info.history) == info.nimg


@pytest.mark.parametrize("every", [1, 5])
def test_averages_rebuilt_from_an_imported_run_are_what_they_say(tmp_path, every):
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(2000, generator=generator) + 0.01 * torch.cumsum(
        torch.randn(3000, 2000, generator=generator), 0
    )
    lengths = (0.03, 0.05)
    net = Weights(2000)
    direct = PowerFunctionEMA({"a": net.a.data}, (0.04, 0.07, 0.2), dtype=torch.float64)
    train(
        tmp_path / "lr", net, walk, observe=direct.update, sigma_rels=lengths,
        update_every=every, checkpoint_dtype=torch.float32,
    )  # fmt: skip
    tracks = import_folder(
        tmp_path / "lr", tmp_path / "run", sigma_rels=lengths, update_every=every
    )
    assert not examine(tmp_path / "run", [0.05]).findings
    for track, sigma_rel in zip(tracks, lengths, strict=True):
        assert track.nominal_gamma == pytest.approx(float(sigma_rel_to_gamma(sigma_rel)))
    wanted = (0.04, 0.07) if every == 1 else (0.2,)
    for built in reconstruct(tmp_path / "run", sigma_rel=wanted):
        truth = direct.state_dict_of(built.sigma_rel)["a"]
        error = float((built.state_dict["a"] - truth).norm() / truth.norm())
        # the walk moves 0.01 a call, and the profiles differ by the 1 to 4 calls of the last update
        assert error < 2e-3 * every, (built.sigma_rel, error)


def test_tensors_arrive_as_they_were_and_the_counter_as_a_number(tmp_path):
    net = Weights(5)
    train(
        tmp_path / "lr", net, torch.ones(100, 5), sigma_rels=(0.05, 0.1), update_every=1,
        save_every=50,
    )  # fmt: skip
    import_folder(tmp_path / "lr", tmp_path / "run", sigma_rels=(0.05, 0.1), update_every=1)
    tensors, metadata = load_tensors(list_snapshots(tmp_path / "run")[0].path)
    assert tensors.keys() == net.state_dict().keys()
    assert metadata["dtype"] == "float16" and tensors["a"].tolist() == [1] * 5
    assert tensors["norm.num_batches_tracked"].dtype == torch.int64


@pytest.fixture
def folder(tmp_path):
    return train(
        tmp_path / "lr", Weights(4), torch.ones(40, 4), sigma_rels=(0.05, 0.28), update_every=10,
        save_every=20,
    )  # fmt: skip


def refused(folder, tmp_path, message, **options):
    given = {"sigma_rels": (0.05, 0.28), "update_every": 1} | options
    with pytest.raises(ValueError, match=message):
        import_folder(folder, tmp_path / "run", **given)
    assert not list((tmp_path / "run").glob("*")), "nothing is left behind"


def test_an_average_that_never_forgets_its_start_is_refused_or_left_out(folder, tmp_path):
    refused(folder, tmp_path, "gamma of at least 9 .* average 1 ", update_every=10)
    refused(folder, tmp_path, "gamma of at least 99", update_every=100, skip_unusable=True)
    tracks = import_folder(
        folder, tmp_path / "run", sigma_rels=(0.05, 0.28), update_every=10, skip_unusable=True
    )
    assert {info.gamma for info in list_snapshots(tmp_path / "run")} == {tracks[0].gamma}
    # the README example of ema-pytorch: asked for 0.05, measured 0.2455 (standard deviation)
    assert tracks[0].sigma_rel == pytest.approx(0.2455, abs=1e-3) and tracks[1].gamma < 0
    with pytest.raises(ValueError, match="new folder"):
        import_folder(folder, tmp_path / "run", sigma_rels=(0.05, 0.28), update_every=1)


def test_settings_that_do_not_fit_the_files_are_refused(folder, tmp_path):
    refused(folder, tmp_path, "the number of lengths is 1", sigma_rels=(0.05,))
    refused(folder, tmp_path, "either sigma_rel or gamma", sigma_rels=None)
    refused(folder, tmp_path, "at least 1", update_every=0)
    with pytest.raises(FileNotFoundError, match="index"):
        import_folder(tmp_path, tmp_path / "run", sigma_rels=(0.05, 0.28), update_every=1)


def test_renamed_damaged_and_foreign_files_are_refused(folder, tmp_path):
    victim = folder / "1.40.pt"
    whole = victim.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 30):
        victim.write_bytes(whole[:size])
        refused(folder, tmp_path, "1.40.pt must be .* a torch file of tensors and nothing else")
    victim.write_bytes((folder / "1.20.pt").read_bytes())
    refused(folder, tmp_path, "step in its name, and is of 20")
    torch.save([1, 2], victim)
    refused(folder, tmp_path, "it holds something else")
    torch.save({"a": torch.zeros(3)}, victim)
    refused(folder, tmp_path, "state of a KarrasEMA")
    state = torch.load(folder / "0.40.pt", weights_only=True)
    torch.save({**state, "ema_model.a": torch.zeros(5)}, victim)
    refused(folder, tmp_path, "same tensors")
    torch.save({**state, "ema_model.a": torch.full((4,), float("inf"))}, victim)
    refused(folder, tmp_path, "must be finite")


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_nothing_in_a_file_is_executed(folder, tmp_path):
    torch.save({"step": Malicious(tmp_path / "executed")}, folder / "0.40.pt")
    refused(folder, tmp_path, "nothing in it was executed")
    assert not (tmp_path / "executed").exists()
    torch.load(folder / "0.40.pt", weights_only=False)  # the trap works
    assert (tmp_path / "executed").exists()


def test_the_command_says_what_was_really_tracked(folder, tmp_path):
    common = ["import", str(folder), "--out", str(tmp_path / "run"), "--sigma-rel", "0.05,0.28"]
    result = CliRunner().invoke(edm2lite, [*common, "--update-every", "10", "--skip-unusable"])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()]
    assert rows[1][:4] == ["0", "16.972", "0.797", "0.2459"] and "unusable:" in rows[2]
    result = CliRunner().invoke(edm2lite, common)
    assert result.exit_code == 2 and "--update-every" in result.output
