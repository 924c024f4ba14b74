"""Run by test_network_use under torchrun: DDP and FSDP2 give the gradients of one process."""

import copy
import os
import sys

import torch
import torch.distributed as dist
from backbones import BACKBONES, TEXT
from open_gains import open_network
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.network.backbone import BackboneConfig
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.layers import gather, normalize_weights_


def main() -> None:
    dist.init_process_group("gloo")
    for backbone in (*BACKBONES.values(), TEXT["unet"]):
        compare(backbone)
    dist.barrier()  # or one may tear down its end while the other still talks
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # torch's threads, ended by the interpreter instead, abort it once in a while


def compare(backbone: BackboneConfig) -> None:
    torch.manual_seed(0)
    alone = open_network(backbone)
    with torch.no_grad():
        for p in alone.parameters():
            p.mul_(1.3)  # off the sphere
    images, noise = torch.randn(2, 4, 2, 8, 8)
    told, sigma = Conditioning({"label": torch.arange(4)}), torch.rand(4) + 0.1
    if backbone.text:
        told.values.update(pooled=torch.randn(4, 6), tokens=torch.randn(4, 3, 6))
    replicated, sharded = copy.deepcopy(alone), copy.deepcopy(alone)
    mesh = init_device_mesh("cpu", (2,))
    for block in sharded.backbone.blocks():
        fully_shard(block, mesh=mesh)
    # the loss is the root: it calls net and net.logvar, whose weights it gathers for both
    sharded_loss = fully_shard(DenoisingLoss(sharded), mesh=mesh)

    DenoisingLoss(alone)(images, told, sigma, noise).loss.mean().backward()
    mine = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
    share = images[mine], told.rows(mine), sigma[mine], noise[mine]
    replicated_loss = DistributedDataParallel(DenoisingLoss(replicated))  # must outlive backward
    replicated_loss(*share).loss.mean().backward()
    sharded_loss(*share).loss.mean().backward()
    # the slope of a gain is one sum, which may cancel: it is held to the largest of them
    slopes = [p.grad.abs().max() for p in alone.parameters() if p.numel() == 1]
    for name, p in alone.named_parameters():
        assert p.grad is not None, name
        size = max(slopes) if p.numel() == 1 else p.grad.abs().max()
        for other in (replicated, sharded):
            grad = gather(other.get_parameter(name).grad)
            # the two halves of the batch are summed in another order
            torch.testing.assert_close(grad, p.grad, rtol=1e-4, atol=1e-5 * size)

    normalize_weights_(alone)
    normalize_weights_(sharded)
    for name, p in alone.named_parameters():
        torch.testing.assert_close(gather(sharded.get_parameter(name).detach()), p.detach())


if __name__ == "__main__":
    main()
