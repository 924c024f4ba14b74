"""What one evaluation of a network costs, counted on the meta device: no memory, no time.

One multiply-accumulate (MAC) is two floating-point operations; a training step takes three times
the MACs of a forward pass. Element-wise work is not counted. A convolution is counted by its
definition, every weight once for every pixel of its output, however few products its kernel takes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from edm2lite.network.backbone import BackboneConfig
from edm2lite.network.layers import MPConv, mp_layers
from edm2lite.network.told import examples


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates for one image, exact integers.

    Attributes:
        convolution: MACs of all convolutions.
        matmul: MACs of linear layers and of the two products in attention.

    Example:
        >>> Macs(convolution=1000, matmul=50).total
        1050
    """

    convolution: int
    matmul: int

    @property
    def total(self) -> int:
        """The sum of both."""
        return self.convolution + self.matmul


def count_macs(config: BackboneConfig, height: int | None = None, width: int | None = None) -> Macs:
    """MACs of one evaluation of any network, for one image with everything that it can be told.

    The table of the paper also counts the 2x2 resampling filters as depthwise convolutions,
    56064 MACs per base channel at 64x64; here they are means and copies.

    Args:
        config: Configuration of the network, which is built without memory.
        height: Height of the image. [default: the training resolution]
        width: Width of the image. [default: the training resolution]

    Example:
        >>> from edm2lite.network.unet import UNetConfig
        >>> count_macs(UNetConfig(img_resolution=64, img_channels=4, model_channels=64)).total
        11344773120
    """
    saved: list[int] = []

    def count_saved(layer: MPConv, _: object, output: Tensor) -> None:
        saved.append(layer.saved_macs(output))

    height, width = height or config.img_resolution, width or config.img_resolution
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        net = config.build().eval()
        for layer in mp_layers(net):
            layer.register_forward_hook(count_saved)
        x = torch.empty(1, config.img_channels, height, width)
        net(x, torch.empty(1), examples(config.conditions, 1, height, width))
    convolution = counter.get_flop_counts()["Global"].get(torch.ops.aten.convolution, 0)
    matmul = counter.get_total_flops() - convolution
    return Macs(convolution // 2 + sum(saved), matmul // 2)
