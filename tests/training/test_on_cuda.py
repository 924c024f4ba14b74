"""Training on a GPU: the course of a CPU, without waits; ``pytest -m cuda`` where there is one."""

import pytest
import torch
from tiny_run import tiny_config
from torch import nn
from training_runs import losses, stats

from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.kernels.unit_rows import unit_rows_
from edm2lite.training import distributed
from edm2lite.training.config import OptimConfig
from edm2lite.training.optimizer import adam
from edm2lite.training.trainer import Trainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
SHORT = ("total_nimg=320", "microbatch=8", "compile=false")


@pytest.fixture
def alone_in_a_group(monkeypatch):
    """What torchrun tells the only process of a group."""
    for name, value in {
        "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_course_is_that_of_a_cpu(tmp_path):
    for name in ("cpu", "cuda"):
        Trainer(tiny_config(*SHORT), tmp_path / name, torch.device(name)).train()
    # ten steps at full rate spread the rounding of sums in other orders, as of bfloat16, by 2**7
    assert losses(tmp_path / "cuda") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


def test_a_step_waits_for_nothing(tmp_path):
    trainer = Trainer(tiny_config(*SHORT), tmp_path / "a", torch.device("cuda"))

    def step():
        trainer.train_step()
        trainer.nimg += trainer.config.batch_size
        trainer.ema.update(trainer.nimg)
        unit_rows_(p.detach() for p in trainer.net.parameters() if p.ndim > 1)

    step()  # state is made, and libraries are loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
        trainer.close()


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_alone_with_nccl_trains_and_continues(parallel, alone_in_a_group, tmp_path):
    Trainer(tiny_config("total_nimg=640"), tmp_path / "plain", torch.device("cuda")).train()
    for total in (320, 640):  # the second run continues from a checkpoint of the first
        config = tiny_config(f"total_nimg={total}", f"parallel={parallel}")
        with distributed.process_group() as device:
            Trainer(config, tmp_path / parallel, device).train()
    assert [line["nimg"] for line in stats(tmp_path / parallel)] == [320, 640]
    assert losses(tmp_path / parallel) == pytest.approx(losses(tmp_path / "plain"), rel=1e-3)


def test_what_follows_the_gradients_can_be_captured_in_a_graph():
    """Three steps replayed from a graph are three steps taken one by one, to rounding."""
    nets = [nn.Linear(33, 17).cuda() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    for net in nets:
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
    optimizers = [adam(net, OptimConfig(), torch.device("cuda")) for net in nets]
    averages = [PowerFunctionEMA(net)._averages for net in nets]

    def tail(i):
        optimizers[i].step()
        weights = list(nets[i].parameters())
        averages[i]._take(weights, averages[i]._all_in_range(weights))
        unit_rows_([nets[i].weight.detach()])

    graph, rates = torch.cuda.CUDAGraph(), []
    for step in range(1, 5):
        for i in range(2):
            rates.append(optimizers[i]._rate(0.1 / step))
            for group in optimizers[i].param_groups:
                group["lr"] = rates[-1]
            averages[i]._now.fill_(64 * step)
        tail(0)
        if step == 1:
            tail(1)
            with torch.cuda.graph(graph):
                tail(1)
        else:
            graph.replay()
    for a, b in zip(averages[0].views(0), averages[1].views(0), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(*(net.weight for net in nets))
