"""accelerate: the same four lines on one device, on several (DDP), or with sharded weights (FSDP2).

    python examples/accelerate_script.py RUN
    torchrun --nproc_per_node=2 examples/accelerate_script.py RUN [--fsdp]

trains on noisy data, rebuilds averages of three lengths from RUN, and prints the validation loss of
each next to the raw weights. Every process averages the weights that it holds, with no messages,
and rank 0 writes. On CPUs accelerate passes over its own FSDP plugin, so torch shards here; with
the plugin on GPUs ``accelerator.is_fsdp2`` takes the place of ``args.fsdp``.
"""

import argparse
import os

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from edm2lite.ema import PowerFunctionEMA, reconstruct

BATCH = 16  # of one process


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="folder for the snapshots, a new one")
    parser.add_argument("--fsdp", action="store_true", help="shard the weights; under torchrun")
    args = parser.parse_args()
    accelerator = Accelerator(cpu=True)

    torch.manual_seed(0)
    x = torch.randn(9000, 8)
    y = (x[:, :4] * x[:, 4:]).sum(1, keepdim=True).tanh()
    noisy = y + torch.randn_like(y)
    model = fully_shard(network()) if args.fsdp else accelerator.prepare(network())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    loader = DataLoader(TensorDataset(x[:5000], noisy[:5000]), BATCH, shuffle=True, drop_last=True)
    optimizer, loader = accelerator.prepare(optimizer, loader)

    ema, nimg = PowerFunctionEMA(model), 0
    saves = args.fsdp or accelerator.is_main_process  # sharded: all take part, rank 0 writes
    for _ in range(4):
        for batch_x, batch_y in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(batch_x), batch_y))
            optimizer.step()
            nimg += BATCH * accelerator.num_processes
            ema.update(nimg)
            if saves and nimg // 1000 > (nimg - BATCH * accelerator.num_processes) // 1000:
                ema.save_snapshots(f"{args.run}/snapshots")

    raw = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True)
    )  # all take part
    if accelerator.is_main_process:
        print(f"{type(model).__name__}, {accelerator.num_processes} processes")
        print("weights         validation loss")
        found = reconstruct(args.run, sigma_rel=[0.05, 0.10, 0.20])
        whole = {"raw": raw, **{f"sigma_rel {r.sigma_rel:.2f}": r.state_dict for r in found}}
        for name, weights in whole.items():
            (plain := network()).load_state_dict(weights)
            loss = nn.functional.mse_loss(plain(x[5000:]), y[5000:])
            print(f"{name:14}  {loss:15.4f}", flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:  # threads of a group abort Python's own exit now and then
        os._exit(0)


if __name__ == "__main__":
    main()
