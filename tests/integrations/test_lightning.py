"""The Lightning callback against a loop in plain PyTorch."""

import logging
import pickle
import sys

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from loops import (
    ACCUMULATE,
    BATCH,
    average,
    build,
    check_resumed,
    check_snapshots,
    data,
    mse,
    plain_loop,
    sgd,
)  # fmt: skip
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edm2lite.ema import list_snapshots, reconstruct
from edm2lite.integrations import lightning as integration
from edm2lite.integrations.lightning import EMACallback, count_samples
from edm2lite.tensorfile import load_tensors

# advice on how to set up a Trainer, no warning of anything wrong
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{advice}")
    for advice in (
        "You defined a `validation_step` but have no `val_dataloader`",
        "The '.*_dataloader' does not have many workers",
        "Checkpoint directory .* exists and is not empty",
    )
]


def module(package=lightning.pytorch, poison_at=None):
    class Module(package.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = build()
            self.seen = []

        def training_step(self, batch, batch_idx):
            loss = mse(self.net, *batch)
            is_poisoned = poison_at is not None and self.global_step == poison_at
            return loss * float("nan") if is_poisoned else loss

        def validation_step(self, batch, batch_idx):
            self.seen.append(self.net[0].weight.detach().clone())

        def configure_optimizers(self):
            return sgd(self.net)

    return Module()


def fit(folder, callbacks, epochs, *, net=None, package=lightning.pytorch, ckpt=None, **options):
    net = net or module(package)
    trainer = package.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        accumulate_grad_batches=ACCUMULATE,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **options},
    )
    loader = DataLoader(TensorDataset(*data()), BATCH)
    validation = loader if "limit_val_batches" in options else None
    trainer.fit(net, loader, validation, ckpt_path=ckpt)
    return trainer


def exact_walk(epochs, **options):
    """What Lightning does: the clock counts real batches, every loss counts 1 / ACCUMULATE."""
    return plain_loop(epochs, lambda batch: len(batch[0]), lambda size: ACCUMULATE, **options)


@pytest.mark.parametrize("package", [lightning.pytorch, pytorch_lightning])
def test_snapshots_are_the_averages_of_a_plain_loop(tmp_path, package):
    run = tmp_path / "run"
    fit(tmp_path, [EMACallback(run, snapshot_nimg=30)], 3, package=package)
    walk = exact_walk(3)
    assert [n for n, _ in walk] == [16, 22, 38, 44, 60, 66]  # one update per optimizer step
    check_snapshots(run, walk, [38, 60, 66], prefix="net.")  # past 30, past 60, end of the fit
    infos = list_snapshots(run)
    assert infos[-1].history == ((16, 1), (6, 1)) * 3
    stored, _ = load_tensors(infos[-1].path)
    assert list(stored) == list(module().state_dict()) and stored["net.1.num_batches_tracked"] == 18


def test_a_callback_that_was_pickled_for_another_process_records_the_same(tmp_path):
    callback = pickle.loads(pickle.dumps(EMACallback(tmp_path, snapshot_nimg=30)))
    fit(tmp_path, [callback], 3)
    check_snapshots(tmp_path, exact_walk(3), [38, 60, 66], prefix="net.")


def test_a_part_of_the_module_other_lengths_and_another_clock(tmp_path):
    callback = EMACallback(
        tmp_path,
        snapshot_steps=4,
        source=lambda m: m.net,
        sigma_rels=(0.2,),
        samples=lambda batch: batch[0].numel(),
    )
    fit(tmp_path, [callback], 3)
    walk = [(6 * nimg, weights) for nimg, weights in exact_walk(3)]
    check_snapshots(tmp_path, walk, [6 * 44, 6 * 66], sigma_rels=(0.2,))
    built = reconstruct(tmp_path, sigma_rel=0.2)
    build().load_state_dict(built.state_dict)  # names of the part, not of the whole
    callback = EMACallback(tmp_path / "b", snapshot_steps=4, samples=100, source=lambda m: m.net)
    fit(tmp_path, [callback], 3)
    walk = [(100 * k, weights) for k, (_, weights) in enumerate(walk, 1)]
    check_snapshots(tmp_path / "b", walk, [400, 600])


def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    def run(name, epochs, ckpt=None, every=30):
        saver = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path / name, save_top_k=-1)
        callbacks = [EMACallback(tmp_path / name, snapshot_nimg=every), saver]
        fit(tmp_path, callbacks, epochs, enable_checkpointing=True, ckpt=ckpt)

    run("whole", 4)
    run("parts", 3)  # to be interrupted before the checkpoint of the third epoch, as it were
    identity = {info.run for info in list_snapshots(tmp_path / "parts")}
    run("parts", 4, ckpt=tmp_path / "parts" / "epoch=1-step=4.ckpt")
    check_snapshots(tmp_path / "parts", exact_walk(4), [38, 60, 88], prefix="net.")
    check_resumed(tmp_path / "whole", tmp_path / "parts", identity, aside=66)


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path):
    net = module()
    trainer = fit(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)], 2, net=net)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(net, DataLoader(TensorDataset(*data()), BATCH))
    walk = exact_walk(3, restart_at=2)  # a fit begins with a new optimizer, without momentum
    check_snapshots(tmp_path, walk, [38, 44, 60, 66], prefix="net.")


def test_validation_sees_the_average_and_training_does_not(tmp_path):
    net, callback = module(), EMACallback(tmp_path, snapshot_nimg=30, evaluate_with=0.10)
    saver = lightning.pytorch.callbacks.ModelCheckpoint(
        tmp_path, save_top_k=-1, save_on_train_epoch_end=False
    )
    options = {"limit_val_batches": 1, "enable_checkpointing": True}
    trainer = fit(tmp_path, [saver, callback], 2, net=net, **options)
    walk = exact_walk(2)
    for seen, nimg in zip(net.seen, (22, 44), strict=True):
        expected = torch.tensor(average(walk, nimg, 0.10)["0.weight"])
        torch.testing.assert_close(seen.double(), expected, rtol=0, atol=2e-6)
    raw = torch.tensor(walk[-1][1]["0.weight"], dtype=torch.float32)
    torch.testing.assert_close(net.net[0].weight.detach(), raw, rtol=0, atol=1e-6)
    saved = torch.load(tmp_path / "epoch=1-step=4.ckpt", weights_only=True)["state_dict"]
    torch.testing.assert_close(saved["net.0.weight"], raw, rtol=0, atol=1e-6)
    # a validation that fails leaves the raw weights behind, too
    net.validation_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.validate(net, DataLoader(TensorDataset(*data()), BATCH), verbose=False)
    torch.testing.assert_close(net.net[0].weight.detach(), raw, rtol=0, atol=1e-6)


def test_an_update_that_is_not_finite_is_reported_and_left_out(tmp_path, caplog):
    caplog.set_level(logging.WARNING, "edm2lite")
    weights = {"source": lambda m: dict(m.net.named_parameters())}  # not what BatchNorm has seen
    callback = EMACallback(tmp_path, snapshot_nimg=30, **weights)
    fit(tmp_path, [callback], 2, net=module(poison_at=2))  # all weights are NaN from then on
    assert callback.ema.num_refused == 2 and callback.ema.nimg == 22 and callback.nimg == 44
    assert "refused EMA update 1 at nimg = 38: not finite" in caplog.text
    check_snapshots(tmp_path, exact_walk(1), [22])


def test_what_cannot_be_done_is_refused_before_training(tmp_path):
    fit(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)], 1)
    with pytest.raises(ValueError, match="one run"):
        fit(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)], 1)
    with pytest.raises(ValueError, match="one of snapshot_nimg and snapshot_steps"):
        EMACallback(tmp_path)
    with pytest.raises(ValueError, match="at least one sample or step apart"):
        EMACallback(tmp_path, snapshot_steps=0)
    other = tmp_path / "other"
    with pytest.raises(ValueError, match=r"evaluate_with must be one of the lengths \(0.05, 0.1\)"):
        fit(tmp_path, [EMACallback(other, snapshot_nimg=9, evaluate_with=0.2)], 1)
    doubled = EMACallback(
        other,
        snapshot_nimg=9,
        evaluate_with=0.1,
        source=lambda m: {"w": m.net[0].weight * 2, "b": m.net[0].bias},
    )
    with pytest.raises(ValueError, match=r"source computes others: \['w'\]"):
        fit(tmp_path, [doubled], 1)
    with pytest.raises(RuntimeError, match="only once training has begun"):
        _ = doubled.ema
    trainer = fit(tmp_path, [], 1)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    with pytest.raises(ValueError, match="the one of step 2 holds none"):
        fit(tmp_path, [EMACallback(other, snapshot_nimg=9)], 2, ckpt=tmp_path / "without.ckpt")
    assert not other.exists()


def test_averaging_begins_late_where_it_is_told_to(tmp_path):
    fit(tmp_path, [], 1).save_checkpoint(tmp_path / "without.ckpt")
    callback = EMACallback(tmp_path, snapshot_nimg=1000, start_nimg=22, source=lambda m: m.net)
    fit(tmp_path, [callback], 2, ckpt=tmp_path / "without.ckpt")
    walk = exact_walk(2)
    (short, long) = list_snapshots(tmp_path)
    assert short.start_nimg == 22 and short.nimg == long.nimg == 44
    expected = average(walk[2:], 44, 0.10, start=walk[1])  # weights of then have the mass before
    stored, _ = load_tensors(long.path)
    for name, value in expected.items():
        torch.testing.assert_close(stored[name].double(), torch.tensor(value), rtol=0, atol=2e-6)


def test_samples_are_counted_where_all_tensors_agree():
    x = torch.zeros(3, 2)
    assert count_samples(x) == count_samples({"x": x, "id": [torch.zeros(3)], "name": "a"}) == 3
    assert count_samples((x, torch.tensor(1.0))) == 3  # a scalar is no sample
    for batch in ({"x": x, "y": torch.zeros(4)}, ["text"], torch.tensor(1.0)):
        with pytest.raises(ValueError, match="give samples="):
            count_samples(batch)


class FullyShardedDataParallel(nn.Linear):
    """Named like the wrapper of FSDP1, which needs a process group to be made."""


def test_weights_that_are_elsewhere_are_refused(tmp_path):
    net = module()
    net.net[0].weight.ds_id = 0  # as DeepSpeed marks what it partitions
    with pytest.raises(ValueError, match="DeepSpeed ZeRO 3"):
        fit(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)], 1, net=net)
    net = module()
    net.net[2] = FullyShardedDataParallel(4, 1)
    with pytest.raises(ValueError, match="these are sharded by FSDP1"):
        fit(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)], 1, net=net)


def test_the_base_class_is_that_of_the_packages_in_use(monkeypatch):
    assert issubclass(EMACallback, (lightning.pytorch.Callback, pytorch_lightning.Callback))
    monkeypatch.delitem(sys.modules, "lightning.pytorch")
    assert integration._callback().__bases__ == (pytorch_lightning.Callback,)
    monkeypatch.delitem(sys.modules, "pytorch_lightning")
    monkeypatch.setattr(integration.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'edm2lite\[lightning\]'"):
        integration._callback()
