"""The Hugging Face callback against a loop in plain PyTorch."""

import importlib
import json
import pickle
import shutil
import sys

import pytest
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
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainerState, TrainingArguments

from edm2lite.ema import list_snapshots
from edm2lite.integrations.transformers import EMACallback
from edm2lite.tensorfile import load_tensors, save_tensors


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build()
        self.seen = []

    def forward(self, x, y):
        if not self.training:
            self.seen.append(self.net[0].weight.detach().clone())
        return {"loss": mse(self.net, x, y)}


class InOrder(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def rows():
    return [{"x": x, "y": y} for x, y in zip(*data(), strict=True)]


def trainer(folder, callbacks, epochs=3, **options):
    net = Net()
    optimizer = sgd(net)
    args = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=ACCUMULATE,
        max_grad_norm=0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        **{"save_strategy": "no", "logging_strategy": "no", **options},
    )
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return InOrder(
        net,
        args,
        train_dataset=rows(),
        eval_dataset={"one": rows()[:4], "two": rows()[4:8]},
        callbacks=callbacks,
        optimizers=(optimizer, constant),
    )


def nominal_walk(epochs):
    """What Trainer does: every batch counts as a full one, losses 1 / batches of the step."""
    return plain_loop(epochs, lambda batch: BATCH, lambda size: size)


def test_snapshots_are_the_averages_of_a_plain_loop(tmp_path):
    trainer(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)]).train()
    walk = nominal_walk(3)
    assert [n for n, _ in walk] == [16, 24, 40, 48, 64, 72]  # one update per optimizer step
    check_snapshots(tmp_path, walk, [40, 64, 72], prefix="net.")
    assert list_snapshots(tmp_path)[-1].history == ((16, 1), (8, 1)) * 3


def test_a_callback_that_was_pickled_for_another_process_records_the_same(tmp_path):
    callback = pickle.loads(pickle.dumps(EMACallback(tmp_path, snapshot_nimg=30)))
    trainer(tmp_path, [callback]).train()
    check_snapshots(tmp_path, nominal_walk(3), [40, 64, 72], prefix="net.")


def test_the_clock_can_be_given(tmp_path):
    clock = {"samples": 100, "snapshot_steps": 4, "sigma_rels": (0.2,)}
    trainer(tmp_path / "a", [EMACallback(tmp_path / "a", **clock)]).train()
    walk = [(100 * k, weights) for k, (_, weights) in enumerate(nominal_walk(3), 1)]
    check_snapshots(tmp_path / "a", walk, [400, 600], sigma_rels=(0.2,), prefix="net.")
    clock["samples"] = lambda state: 1000 + state.global_step**2
    trainer(tmp_path / "b", [EMACallback(tmp_path / "b", **clock)]).train()
    walk = [(1000 + k * k, weights) for k, (_, weights) in enumerate(walk, 1)]
    check_snapshots(tmp_path / "b", walk, [1016, 1036], sigma_rels=(0.2,), prefix="net.")


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    def run(name, epochs, resume=None):
        callback = EMACallback(tmp_path / name, snapshot_nimg=30)
        options = {"save_strategy": "steps", "save_steps": 3, "logging_strategy": "epoch"}
        trainer(tmp_path / name, [callback], epochs, **options).train(resume)

    run("whole", 4)
    run("parts", 2)  # until step 4, with a checkpoint at step 3
    identity = {info.run for info in list_snapshots(tmp_path / "parts")}
    shutil.rmtree(tmp_path / "parts" / "checkpoint-4")
    run("parts", 4, str(tmp_path / "parts" / "checkpoint-3"))
    check_snapshots(tmp_path / "parts", nominal_walk(4), [40, 64, 96], prefix="net.")
    check_resumed(tmp_path / "whole", tmp_path / "parts", identity, aside=48)


def test_a_checkpoint_elsewhere_must_be_named_and_a_wrong_one_is_refused(tmp_path):
    def make(folder, **options):
        options |= {"save_strategy": "epoch", "logging_strategy": "epoch"}
        callback = EMACallback(folder, snapshot_nimg=30)
        return trainer(folder, [callback], options.pop("epochs", 1), **options)

    make(tmp_path / "a").train()
    shutil.move(tmp_path / "a" / "checkpoint-2", moved := tmp_path / "moved")
    with pytest.raises(ValueError, match="the one of step 2 holds none"):
        make(tmp_path / "a", epochs=2).train(str(moved))
    make(tmp_path / "a", epochs=2, resume_from_checkpoint=str(moved)).train(str(moved))
    check_snapshots(tmp_path / "a", nominal_walk(2), [24, 40, 48], prefix="net.")
    make(tmp_path / "b").train()  # has a checkpoint of the same step, of another run
    state = moved / "trainer_state.json"
    content = json.loads(state.read_text())
    content["log_history"][0]["loss"] += 0.5
    state.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="step 2, and belongs to another; set TrainingArguments"):
        make(tmp_path / "b", epochs=2).train(str(moved))
    tensors, metadata = load_tensors(moved / "ema_state.safetensors")
    save_tensors(moved / "ema_state.safetensors", tensors, {**metadata, "format": "x"})
    with pytest.raises(ValueError, match="belongs to another"):
        make(tmp_path / "a", epochs=2, resume_from_checkpoint=str(moved)).train(str(moved))
    (moved / "ema_state.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="cut short"):
        make(tmp_path / "a", epochs=2, resume_from_checkpoint=str(moved)).train(str(moved))


def test_every_evaluation_sees_the_average_and_training_does_not(tmp_path):
    callback = EMACallback(tmp_path, snapshot_nimg=30, evaluate_with=0.10)
    run = trainer(tmp_path, [], 2, eval_strategy="epoch", save_strategy="epoch")
    callback.attach(run)
    run.train()
    walk = nominal_walk(2)
    seen = run.model.seen  # two data sets at the end of each epoch, of one batch each
    for weight, nimg in zip(seen, (24, 24, 48, 48), strict=True):
        expected = torch.tensor(average(walk, nimg, 0.10)["0.weight"])
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=2e-6)
    raw = torch.tensor(walk[-1][1]["0.weight"], dtype=torch.float32)
    torch.testing.assert_close(run.model.net[0].weight.detach(), raw, rtol=0, atol=1e-6)
    saved, _ = load_tensors(tmp_path / "checkpoint-4" / "model.safetensors")
    assert saved["net.0.weight"].equal(run.model.net[0].weight.detach())
    run.predict(rows()[:4])
    assert seen[-1].equal(seen[-2])
    run.model.forward = lambda **batch: 1 / 0
    with pytest.raises(ZeroDivisionError):
        run.evaluate()
    assert saved["net.0.weight"].equal(run.model.net[0].weight.detach())


def test_what_cannot_be_done_is_refused_before_training(tmp_path):
    run = trainer(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30, evaluate_with=0.10)])
    with pytest.raises(ValueError, match="attach.trainer. in place of callbacks"):
        run.train()
    trainer(tmp_path, [], 1, save_strategy="epoch").train()
    run = trainer(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)], 2)
    with pytest.raises(ValueError, match="the one of step 2 holds none"):
        run.train(str(tmp_path / "checkpoint-2"))
    assert not (tmp_path / "snapshots").exists()
    callback = EMACallback(tmp_path, snapshot_nimg=1000, start_nimg=24)
    trainer(tmp_path, [callback], 2).train(str(tmp_path / "checkpoint-2"))
    assert {info.start_nimg for info in list_snapshots(tmp_path)} == {24}
    with pytest.raises(ValueError, match="one run"):
        trainer(tmp_path, [EMACallback(tmp_path, snapshot_nimg=30)], 1).train()
    search = TrainerState(is_hyper_param_search=True)
    with pytest.raises(ValueError, match="this is a hyperparameter search over many"):
        callback.on_train_begin(None, search, None, model=None)
    callback._samples = None
    with pytest.raises(ValueError, match="give samples="):
        callback.on_step_end(None, TrainerState(), None, train_dataloader=iter([]))


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, "edm2lite.integrations.transformers")
    with pytest.raises(ImportError, match=r"pip install 'edm2lite\[transformers\]'"):
        importlib.import_module("edm2lite.integrations.transformers")
