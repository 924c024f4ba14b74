"""Outputs and gradients on a device against float64 on the CPU: eager and compiled, by type."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.dtypes import DTYPES
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.unet import UNetConfig

NET = UNetConfig(
    img_resolution=16, img_channels=4, label_dim=10, model_channels=64, channel_mult=(1, 2),
    num_blocks=1, attn_resolutions=(8,), head_channels=64,
)  # fmt: skip
"""Every kind of layer: both resamplings, attention, skip connections, labels."""
TINY = dataclasses.replace(NET, img_resolution=8, model_channels=8, attn_resolutions=(4,),
                           head_channels=8)  # fmt: skip

BOUNDS = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 8e-2}
"""Relative error of outputs and of whole gradients: 2**-24, 2**-11 and 2**-8 per rounding, over
some thirty layers, whose errors add up like a random walk; and as much again for the gradient."""


def opened(config: UNetConfig, dtype: str = "float32") -> Precond:
    """A network with random weights whose gains let every layer reach the output."""
    torch.manual_seed(0)
    net = Precond(PrecondConfig(backbone=config, dtype=dtype))  # type: ignore[arg-type]
    for name, parameter in net.named_parameters():
        if name.endswith("gain"):
            parameter.data.fill_(0.5)
    return net.train()


def batch(config: UNetConfig, num: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, sigma, labels, and what the output is multiplied by for a gradient, on the CPU."""
    rng = torch.Generator().manual_seed(1)
    shape = (num, config.img_channels, config.img_resolution, config.img_resolution)
    sigma = torch.rand(num, generator=rng) * 2 + 0.1
    x = torch.randn(shape, generator=rng) * (0.25 + sigma.square()).sqrt()[:, None, None, None]
    labels = torch.arange(num) % config.label_dim
    return x, sigma, labels, torch.randn(shape, generator=rng)


def exact(net: Precond, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """D_x in float64, of a network whose weights are float64."""
    s = net.config.scalings(sigma.double()[:, None, None, None])
    F_x = net.backbone(s.c_in * x.double(), s.c_noise.flatten(), Conditioning.of(labels))
    D_x: Tensor = s.c_skip * x.double() + s.c_out * F_x
    return D_x


def with_gradients(
    net: Precond, denoise: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> tuple[Tensor, dict[str, Tensor]]:
    """D_x, and the gradient of its product with the last input by every weight, float64."""
    *told, seen = inputs
    net.zero_grad(set_to_none=True)
    D_x = denoise(*told)
    (D_x * seen).sum().backward()
    grads = {n: p.grad.double().cpu() for n, p in net.named_parameters() if p.grad is not None}
    return D_x.detach().double().cpu(), grads


def errors(
    got: tuple[Tensor, dict[str, Tensor]], expected: tuple[Tensor, dict[str, Tensor]]
) -> dict[str, Any]:
    """Relative errors of D_x, of the whole gradient and of that of the worst tensor."""
    (D_x, grads), (exact_D_x, exact_grads) = got, expected
    assert grads.keys() == exact_grads.keys()
    differences = {n: float((grads[n] - g).norm()) for n, g in exact_grads.items()}
    norms = {n: float(g.norm()) for n, g in exact_grads.items()}
    whole = sum(v * v for v in norms.values()) ** 0.5
    worst = max(differences, key=lambda n: differences[n] / (norms[n] + 1e-3 * whole))
    return {
        "output": float((D_x - exact_D_x).norm() / exact_D_x.norm()),
        "gradient": sum(v * v for v in differences.values()) ** 0.5 / whole,
        "worst": worst,
        "its_gradient": differences[worst] / (norms[worst] + 1e-3 * whole),
    }


def compiled(function: Callable[..., Any], device: torch.device, tiny: bool) -> Callable[..., Any]:
    """The function compiled; a tiny check on a CPU traces it and makes no kernels."""
    backend = "eager" if tiny and device.type == "cpu" else "inductor"
    made: Callable[..., Any] = torch.compile(function, fullgraph=True, backend=backend)
    return made


def no_tf32() -> None:
    """Float32 as the trainer computes it."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def correctness(device: torch.device, tiny: bool) -> Iterator[dict[str, Any]]:
    """A row per way to compute and type, eager ones first."""
    no_tf32()
    config, num = (TINY, 2) if tiny else (NET, 8)
    inputs = batch(config, num)
    reference = opened(config).double()
    expected = with_gradients(reference, lambda *told: exact(reference, *told), inputs)
    there = tuple(t.to(device) for t in inputs)
    for way in ("eager", "compiled"):
        for dtype in DTYPES if way == "eager" or not tiny else DTYPES[:1]:
            net = opened(config, dtype).to(device)
            denoise = compiled(net, device, tiny) if way == "compiled" else net
            found = errors(with_gradients(net, denoise, there), expected)
            ok = max(found["output"], found["gradient"]) < BOUNDS[dtype]
            yield {"way": way, "dtype": dtype, **found, "ok": ok}
    for dtype in DTYPES:
        net = opened(config, dtype).to(device).eval()
        prepared = copy.deepcopy(net).prepared(dtype=dtype, device=device)
        with torch.no_grad():
            D_x = prepared(*there[:3]).double().cpu()
        error = float((D_x - expected[0]).norm() / expected[0].norm())
        yield {"way": "sampling", "dtype": dtype, "output": error, "ok": error < BOUNDS[dtype]}
