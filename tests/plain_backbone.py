"""A backbone as a user writes it: plain nn.Linear, a class label, no layers of ours."""

from dataclasses import dataclass

import torch
from torch import nn

from edm2lite.network.backbone import Backbone, BackboneConfig
from edm2lite.network.conditions import ClassLabel


@dataclass(frozen=True, kw_only=True)
class MLPConfig(BackboneConfig):
    """A multilayer perceptron on all pixels."""

    kind: str = "plain_backbone:MLPConfig"
    width: int = 32
    num_classes: int = 0

    @property
    def conditions(self):
        return (ClassLabel(self.num_classes),) if self.num_classes else ()

    def build(self):
        return MLP(self)


class MLP(Backbone):
    def __init__(self, config):
        super().__init__()
        self.config = config
        size = config.img_channels * config.img_resolution**2
        self.first = nn.Linear(size + 1 + config.num_classes, config.width)
        self.hidden = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.width), nn.SiLU(), nn.Linear(config.width, config.width)
            )
            for _ in range(2)
        )
        self.last = nn.Linear(config.width, size)

    def blocks(self):
        return list(self.hidden)

    def forward(self, x, c_noise, conditioning):
        inputs = [x.flatten(1), c_noise[:, None].to(x.dtype)]
        if self.config.num_classes:
            labels = conditioning.get("label")
            vectors = x.new_zeros(len(x), self.config.num_classes)
            if labels is not None:
                vectors = ClassLabel(self.config.num_classes).vectors(labels).to(x.dtype)
            inputs.append(vectors)
        h = self.first(torch.cat(inputs, 1))
        for block in self.hidden:
            h = h + block(h)
        return self.last(h).reshape(x.shape)
