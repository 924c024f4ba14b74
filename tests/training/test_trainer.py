"""The trainer: resume bit for bit, processes that do not matter, clear refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_run import tiny_config
from training_runs import digests, losses, stats

from edm2lite.dataset import open_dataset
from edm2lite.ema import list_snapshots
from edm2lite.models.loading import load
from edm2lite.network.conditioning import Conditioning
from edm2lite.tensorfile import load_tensors
from edm2lite.training.data import BatchSource
from edm2lite.training.trainer import Trainer

CPU = torch.device("cpu")


def test_a_run_leaves_everything_behind(run_dir):
    assert {p.name for p in run_dir.iterdir()} == {
        "config.yaml", "run.json", "stats.jsonl", "log.txt", "snapshots", "checkpoints",
        "last.safetensors",
    }  # fmt: skip
    infos = list_snapshots(run_dir)
    assert [i.nimg for i in infos] == [160 * (k // 2 + 1) for k in range(16)]
    assert infos[-1].history == ((32, 40),)
    assert [line["nimg"] for line in stats(run_dir)] == [
        320, 640, 960, 1280,
    ]  # fmt: skip
    assert losses(run_dir)[-1] < losses(run_dir)[0]
    assert len(list((run_dir / "checkpoints").iterdir())) == 2


def test_first_step_has_learning_rate_zero(tmp_path):
    trainer = Trainer(tiny_config(), tmp_path / "a", CPU)
    before = {n: p.clone() for n, p in trainer.net.named_parameters()}
    trainer.train_step()
    assert all(p.equal(before[n]) for n, p in trainer.net.named_parameters())
    trainer.close()


def test_snapshots_hold_the_weights_at_the_image_counts_that_they_state(tmp_path):
    """The average after the first step is the weights themselves; later ones follow Eq. 127."""
    config, seen = tiny_config("snapshot_nimg=32", "total_nimg=96"), {}
    trainer = Trainer(config, tmp_path / "a", CPU)
    update = trainer.ema.update

    def recorded(nimg):
        seen[nimg] = {n: p.detach().double() for n, p in trainer.net.named_parameters()}
        update(nimg)

    trainer.ema.update = recorded
    trainer.train()
    assert list(seen) == [32, 64, 96]
    for info in list_snapshots(tmp_path / "a"):
        tensors, metadata = load_tensors(info.path)
        assert int(metadata["nimg"]) == info.nimg
        times = [n for n in seen if n <= info.nimg]
        edges = (np.array([0, *times]) / info.nimg) ** (info.gamma + 1)
        for name in seen[32]:
            average = sum(p * seen[n][name] for p, n in zip(np.diff(edges), times, strict=True))
            torch.testing.assert_close(tensors[name].double(), average, rtol=1e-5, atol=1e-6)


def test_interrupted_equals_uninterrupted_bit_for_bit(run_dir, tmp_path):
    folder = tmp_path / "b"
    Trainer(tiny_config("total_nimg=640"), folder, CPU).train()
    Trainer(tiny_config(), folder, CPU).train()
    assert digests(folder) == digests(run_dir)
    assert losses(folder) == losses(run_dir)


def test_a_tick_cut_by_a_checkpoint_ends_with_the_same_line(run_dir, tmp_path):
    folder = tmp_path / "cut"
    trainer = Trainer(tiny_config("checkpoint_nimg=96"), folder, CPU)
    step = trainer.train_step

    def interrupted():
        if trainer.nimg == 448:  # a checkpoint at 384 lies in the tick from 320 to 640
            raise KeyboardInterrupt
        return step()

    trainer.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    Trainer(tiny_config("checkpoint_nimg=96"), folder, CPU).train()
    assert losses(folder) == losses(run_dir)


def test_finished_run_started_again_changes_nothing(run_dir, tmp_path):
    folder = tmp_path / "again"
    shutil.copytree(run_dir, folder)
    Trainer(tiny_config(), folder, CPU).train()
    assert digests(folder) == digests(run_dir) and losses(folder) == losses(run_dir)


def test_accumulation_does_not_change_the_losses(run_dir, tmp_path):
    Trainer(tiny_config("microbatch=12"), tmp_path / "c", CPU).train()
    # float32 sums in another order, through 40 steps
    np.testing.assert_allclose(losses(tmp_path / "c"), losses(run_dir), rtol=1e-4)


def source(**changes):
    arguments = {"seed": 1, "batch_size": 24, "microbatch": 24, **changes}
    return BatchSource(open_dataset("digits"), **arguments)


def test_samples_do_not_depend_on_processes_or_micro_batches():
    whole = source().batch(1800)[0]
    parts = [
        batch
        for rank in range(2)
        for batch in source(rank=rank, world_size=2, microbatch=5).batch(1800)
    ]
    assert [len(p.indices) for p in parts] == [5, 5, 2] * 2
    for name in ("images", "z", "noise"):
        assert torch.cat([getattr(p, name) for p in parts]).equal(getattr(whole, name))
    told = Conditioning.cat([p.conditioning for p in parts])
    assert told["label"].equal(whole.conditioning["label"])


def test_every_epoch_shows_every_image_once():
    batches = source(batch_size=599, microbatch=599)
    for epoch in (0, 1):
        rows = batches.order.rows(1797 * epoch + np.arange(1797))
        assert sorted(rows) == list(range(1797))
    assert batches.order.rows(np.array([0])) != batches.order.rows(np.array([1797]))


def test_non_finite_gradients_are_zeroed_counted_and_stop_the_run(tmp_path):
    trainer = Trainer(tiny_config("max_bad_steps=5", "status_nimg=160"), tmp_path / "e", CPU)
    trainer.net.backbone.out_conv.weight.register_hook(lambda g: torch.full_like(g, float("nan")))
    with pytest.raises(FloatingPointError, match="they were not in 5 steps in a row"):
        trainer.train()
    assert json.loads((tmp_path / "e" / "stats.jsonl").read_text())["nonfinite_steps"] == 5
    assert all(p.isfinite().all() for p in trainer.net.parameters())
    assert trainer.ema.num_refused == 0


@pytest.mark.parametrize(
    "override, message",
    [
        ("net.backbone.img_channels=3", "img_channels must be the 1 channels of digits"),
        ("net.backbone.img_resolution=16", r"size of the images of digits \(8 x 8\), got 16"),
        ("net.backbone.label_dim=7", r"must take what digits has \(10 classes\) or less"),
        ("data.source=/nowhere", "no data set at /nowhere"),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_written(override, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        Trainer(tiny_config(override), tmp_path / "f", CPU)
    assert not (tmp_path / "f").exists()


def test_folder_of_another_run_is_refused_and_left_as_it_was(run_dir):
    before = digests(run_dir), (run_dir / "config.yaml").read_text()
    with pytest.raises(ValueError, match="another configuration: optim.ref_lr"):
        Trainer(tiny_config("optim.ref_lr=0.03"), run_dir, CPU)
    assert (digests(run_dir), (run_dir / "config.yaml").read_text()) == before


def test_models_are_found_by_every_kind_of_name(run_dir):
    raw = load(run_dir)
    assert raw.metadata["average"] == "none" and raw.encoder.scale == 191.79
    stored = list_snapshots(run_dir)[-1]
    by_file, by_name = load(stored.path), load(f"{run_dir}@sigma_rel={stored.sigma_rel}")
    for name, value in by_file.net.state_dict().items():
        torch.testing.assert_close(by_name.net.state_dict()[name], value, atol=1e-5, rtol=0)
    earlier = load(f"{run_dir}@gamma=6.9,nimg=640")
    assert earlier.metadata["nimg"] == "640"


@pytest.mark.parametrize(
    "query, message",
    [
        ("sigma_rel=0.1,gamma=3", "one of sigma_rel, gamma and decay"),
        ("nimg=640", "one of sigma_rel, gamma and decay"),
        ("length=3", "must name an average"),
        ("sigma_rel=abc", "must be a number"),
        ("sigma_rel=0.3", "between 0 and 0.2887"),
        ("sigma_rel=0.1,nimg=100", "nearest is 160"),
    ],
)
def test_malformed_names_are_explained(run_dir, query, message):
    with pytest.raises(ValueError, match=message):
        load(f"{run_dir}@{query}")


DIT = (
    "{kind: dit, img_resolution: 8, img_channels: 1, label_dim: 10, patch_size: 4, width: 32,"
    " num_blocks: 2, num_heads: 2}"
)


@pytest.mark.parametrize(
    "changes",
    [
        ("net.parametrization=v", "weighting.kind=min_snr"),
        ("net.parametrization=flow", "weighting.kind=flow", "loss={kind: logit_normal}"),
        ("net.parametrization=trigflow", "loss={kind: ddpm, zero_terminal_snr: true}"),
        (f"net.backbone={DIT}", "net.parametrization=epsilon", "net.embedding=step",
         "loss={kind: ddpm, schedule: linear}", "weighting.kind=epsilon", "optim.ref_lr=0.003"),
        (f"net.backbone={DIT}", "net.parametrization=v", "optim.ref_lr=0.003"),
        (f"net.backbone={DIT.replace('dit', 'mp_dit')}", "data.label_dropout=0.1"),
        (f"net.backbone={DIT.replace('dit', 'mp_dit')}", "net.parametrization=flow",
         "weighting.kind=flow", "loss={kind: logit_normal}"),
    ],
)  # fmt: skip
def test_other_objectives_train_and_continue_bit_for_bit(changes, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    Trainer(tiny_config(*changes), whole, CPU).train()
    Trainer(tiny_config(*changes, "total_nimg=640"), cut, CPU).train()
    Trainer(tiny_config(*changes), cut, CPU).train()
    assert digests(cut) == digests(whole) and losses(cut) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0]
    assert stats(whole)[-1]["nonfinite_samples"] == 0
