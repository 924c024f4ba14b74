"""accelerate: four lines, on one device, on several (DDP), or with sharded weights (FSDP2).

    python examples/accelerate_script.py RUN
    torchrun --nproc_per_node=2 examples/accelerate_script.py RUN [--fsdp]

trains on noisy data, rebuilds averages of three lengths from RUN, and prints the validation loss of
each next to that of the raw weights. Every process averages the weights that it holds, without
communication, and rank 0 writes. On CPUs accelerate ignores its own FSDP plugin, so the model is
sharded with torch here. With the plugin on GPUs, use ``accelerator.is_fsdp2`` for ``args.fsdp``.
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

BATCH = 16  # per process


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="new folder for the snapshots")
    parser.add_argument("--fsdp", action="store_true", help="shard the weights (with torchrun)")
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
    saves = args.fsdp or accelerator.is_main_process  # sharded: all ranks gather, rank 0 writes
    for _ in range(4):
        for batch_x, batch_y in loader:
            optimizer.zero_grad()
            accelerator.backward(nn.functional.mse_loss(model(batch_x), batch_y))
            optimizer.step()
            nimg += BATCH * accelerator.num_processes
            ema.update(nimg)
            if saves and nimg // 1000 > (nimg - BATCH * accelerator.num_processes) // 1000:
                ema.save_snapshots(f"{args.run}/snapshots")

    options = StateDictOptions(full_state_dict=True)
    raw = get_model_state_dict(model, options=options)  # called by every rank, as it gathers
    if accelerator.is_main_process:
        print(f"{type(model).__name__}, {accelerator.num_processes} processes")
        print("weights         validation loss")
        results = reconstruct(args.run, sigma_rel=[0.05, 0.10, 0.20])
        averages = {f"sigma_rel {r.sigma_rel:.2f}": r.state_dict for r in results}
        for name, weights in {"raw": raw, **averages}.items():
            (plain := network()).load_state_dict(weights)
            loss = nn.functional.mse_loss(plain(x[5000:]), y[5000:])
            print(f"{name:14}  {loss:15.4f}", flush=True)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:  # threads of the process group sometimes abort a normal exit
        os._exit(0)


if __name__ == "__main__":
    main()
