"""A network whose every layer reaches the output, as gains of 0 at initialisation do not let it."""

import torch

from edm2lite.diffusion.precond import Precond


def open_network(config):
    net = Precond(config)
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("gain"):
                p.fill_(0.7)
    return net
