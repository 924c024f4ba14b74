"""Run by test_tracker under torchrun: averages of an FSDP2 model, saved by rank 0."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.debug import CommDebugMode

from edm2lite.ema import PowerFunction, PowerFunctionEMA, Reconstruction
from edm2lite.ema.shards import local_shard, values_of_ranks


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))  # uneven, 1 of 2 rows


def step(net: nn.Module, k: int) -> None:
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            local_shard(p).mul_(0.5 + 0.1 * k + 0.01 * i)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    net, unsharded = build(), build()
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    ema = PowerFunctionEMA(net, run="sharded")
    reference = PowerFunctionEMA(unsharded, run="sharded")
    for k, nimg in enumerate((64, 160, 192)):
        step(net, k)
        step(unsharded, k)
        with CommDebugMode() as messages:
            ema.update(nimg)
        assert messages.get_total_counts() == 0
        reference.update(nimg)
    for sigma_rel in ema.sigma_rels:
        expected, buffers = reference.state_dict_of(sigma_rel), dict(net.named_buffers())
        for name, value in ema.state_dict_of(sigma_rel).items():
            assert isinstance(value, DTensor) == (name not in buffers)
            full = value.full_tensor() if isinstance(value, DTensor) else value
            assert full.equal(expected[name].detach()), name
    ema.save_snapshots(folder / "sharded", background=True)
    ema.flush()
    dist.barrier()
    if dist.get_rank() == 0:
        reference.save_snapshots(folder / "whole")

    whole = Reconstruction(  # on every rank, and loaded into shards
        PowerFunction(5.0, 192), None, np.ones(1), 0.0, (), {}, 1, reference.state_dict_of(0.05)
    )
    loaded = build()
    fully_shard(loaded, mesh=net[0].weight.device_mesh)
    whole.load_into(loaded)
    for name, value in loaded.state_dict().items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        assert full.equal(reference.state_dict_of(0.05)[name].detach()), name

    before = [local_shard(p).clone() for p in net.parameters()]
    with ema.applied(0.05):
        out = net(torch.ones(4, 5))
    assert all(local_shard(p).equal(b) for p, b in zip(net.parameters(), before, strict=True))
    with reference.applied(0.05):
        torch.testing.assert_close(out, unsharded(torch.ones(4, 5)))

    dcp.save(ema.state_dict(), checkpoint_id=folder / "state")
    again = PowerFunctionEMA(net)
    state = again.state_dict()
    dcp.load(state, checkpoint_id=folder / "state")
    again.load_state_dict(state)
    assert again.nimg == 192 and again.run == "sharded"
    for sigma_rel in ema.sigma_rels:
        averages, restored = ema.state_dict_of(sigma_rel), again.state_dict_of(sigma_rel)
        assert all(local_shard(averages[n]).equal(local_shard(restored[n])) for n in averages)

    if dist.get_rank() == 1:
        with torch.no_grad():
            local_shard(net[0].weight).fill_(float("nan"))
    ema.update(256)  # refused by rank 1 alone
    assert values_of_ranks(ema.num_refused, net.parameters()) == [0, 1]
    assert ema.nimg == (256 if dist.get_rank() == 0 else 192)
    dist.barrier()  # or one may tear down its end while the other still talks
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # torch's threads, ended by the interpreter instead, abort it once in a while


if __name__ == "__main__":
    main(Path(sys.argv[1]))
