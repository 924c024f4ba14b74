"""Run by test_ranks: the callbacks in two processes, by DDP, and weights sharded by FSDP2.

``ranks.py FOLDER PORT`` forks, so that everything is imported once.
"""

import os
import sys
import threading
import traceback
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from loops import BATCH, build, data, mse, sgd
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler, SequentialSampler, TensorDataset
from transformers import Trainer, TrainingArguments

from edm2lite.ema import PowerFunctionEMA
from edm2lite.ema.shards import local_shard
from edm2lite.integrations.lightning import EMACallback as LightningCallback
from edm2lite.integrations.recorder import Recorder
from edm2lite.integrations.transformers import EMACallback as TransformersCallback

NUM = 24


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = build(nn.Softplus)

    def training_step(self, batch, batch_idx):
        return mse(self.net, *batch)

    def configure_optimizers(self):
        return sgd(self.net)


class Sharded(Module):
    def configure_model(self):
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def fit(net: pl.LightningModule, run: Path, rank: int, strategy, epochs: int, ckpt=None):
    callback = LightningCallback(run, snapshot_nimg=30)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_epochs=epochs,
        accumulate_grad_batches=2,
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    rows = TensorDataset(*data(NUM))
    in_order = DistributedSampler(rows, 2, rank, shuffle=False)  # Lightning's own would shuffle
    trainer.fit(net, DataLoader(rows, BATCH, sampler=in_order), ckpt_path=ckpt)
    trainer.save_checkpoint(run / "last.ckpt")
    assert trainer.world_size == 2 and callback.nimg == 24 * epochs
    assert bool(callback.state_dict()) == (rank == 0)


def with_lightning(run: Path, rank: int) -> None:
    fit(Module(), run, rank, "ddp", epochs=2)


def with_lightning_shards(run: Path, rank: int) -> None:
    for epochs in (1, 2):
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        fit(
            net := Sharded(), run, rank, strategy, epochs, run / "last.ckpt" if epochs > 1 else None
        )
        assert all(isinstance(p, DTensor) for p in net.parameters())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = build(nn.Softplus)

    def forward(self, x, y):
        return {"loss": mse(self.net, x, y)}


class InOrder(Trainer):
    def _get_train_sampler(self, *args):
        return SequentialSampler(self.train_dataset)


def with_transformers(run: Path, rank: int) -> None:
    net = Net()
    optimizer = sgd(net)
    args = TrainingArguments(
        output_dir=str(run),
        num_train_epochs=2,
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=2,
        max_grad_norm=0,
        use_cpu=True,
        ddp_backend="gloo",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="epoch",
    )
    rows = [{"x": x, "y": y} for x, y in zip(*data(NUM), strict=True)]
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    callback = TransformersCallback(run, snapshot_nimg=30)
    options = {"optimizers": (optimizer, constant), "callbacks": [callback]}
    InOrder(net, args, train_dataset=rows, **options).train()
    assert args.world_size == 2 and callback.nimg == 48


def step(net: nn.Module, k: int) -> None:
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            local_shard(p).mul_(0.5 + 0.1 * k + 0.01 * i)


def with_shards(run: Path, rank: int) -> None:
    """A checkpoint holds whole averages, and each process continues with its part of them."""
    mesh, reference = init_device_mesh("cpu", (2,)), PowerFunctionEMA(whole := build())
    first = Recorder(run, snapshot_steps=3)
    first._begin(net := fully_shard(build(), mesh=mesh), None, steps_before=0, is_main=rank == 0)
    recorder = first
    for k in range(1, 6):
        step(net, k)
        step(whole, k)
        recorder._advance(10)
        reference.update(10 * k)
        if k == 3:
            state = recorder._state()
            assert bool(state) == (rank == 0)
            if rank == 0:
                torch.save(state, run / "state.pt")
            dist.barrier()
            recorder = Recorder(run, snapshot_steps=3, evaluate_with=0.10)
            state = torch.load(run / "state.pt", weights_only=True)
            recorder._begin(net, state, steps_before=3, is_main=rank == 0)
    recorder._finish()
    if rank == 0:
        reference.save_snapshots(run / "whole")
    for sigma_rel in (0.05, 0.10):
        averages, expected = (
            recorder.ema.state_dict_of(sigma_rel),
            reference.state_dict_of(sigma_rel),
        )
        for name, value in averages.items():
            full = value.full_tensor() if hasattr(value, "full_tensor") else value
            assert full.equal(expected[name].detach()), name
    x = data()[0]
    with recorder._evaluating(), reference.applied(0.10):
        torch.testing.assert_close(net(x), whole(x))


def child(folder: Path, rank: int, port: int) -> None:
    code = 1
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "GROUP_RANK": "0",
        "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    try:
        dist.init_process_group("gloo")
        for job in (with_shards, with_lightning, with_lightning_shards, with_transformers):
            job(folder / job.__name__.removeprefix("with_"), rank)
            dist.barrier()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        for thread in threading.enumerate():
            if thread.name == "ema-writer":  # what the exit of an interpreter waits for
                thread.join(60)
        os._exit(
            code
        )  # torch's threads, ended by the interpreter instead, abort it once in a while


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    children = []
    for number in range(2):
        pid = os.fork()
        if pid == 0:
            child(Path(sys.argv[1]), number, int(sys.argv[2]))
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    sys.exit(any(codes))
