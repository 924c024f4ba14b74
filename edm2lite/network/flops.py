"""What one evaluation of a network costs, counted on the meta device: no memory, no time.

One multiply-accumulate (MAC) is two floating-point operations; a training step takes three times
the MACs of a forward pass. Element-wise work is not counted. A convolution counts what it is, every
weight once for every pixel of its output, however few products it is computed with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network.layers import MPConv


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image, exact integers.

    Attributes:
        convolution: Of all convolutions.
        matmul: Of linear layers and of the two products in attention.
    """

    convolution: int
    matmul: int

    @property
    def total(self) -> int:
        return self.convolution + self.matmul


def count_macs(config: PrecondConfig, height: int | None = None, width: int | None = None) -> Macs:
    """MACs of one evaluation of D for one image.

    The table of the paper also counts the 2x2 resampling filters as depthwise convolutions,
    56064 MACs per base channel at 64x64; here they are means and copies.

    Args:
        config: Of the network; it is built without memory.
        height: Of the image. [default: the training resolution]
        width: The same.
    """
    convolutions: list[int] = []

    def count(layer: MPConv, _: object, output: Tensor) -> None:
        convolutions.append(layer.weight.numel() * output.shape[2:].numel())

    unet = config.unet
    shape = (1, unet.img_channels, height or unet.img_resolution, width or unet.img_resolution)
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        net = Precond(config).eval()
        for module in net.modules():
            if isinstance(module, MPConv) and module.weight.ndim == 4:
                module.register_forward_hook(count)
        labels = torch.empty(1, unet.label_dim) if unet.label_dim else None
        net(torch.empty(shape), torch.empty(1), labels)
    counts = counter.get_flop_counts()["Global"]
    matmul = counter.get_total_flops() - counts.get(torch.ops.aten.convolution, 0)
    return Macs(sum(convolutions), matmul // 2)


def num_parameters(config: PrecondConfig) -> int:
    """Parameters of a network, the uncertainty head included; it is built without memory."""
    with torch.device("meta"):
        return sum(p.numel() for p in Precond(config).parameters())
