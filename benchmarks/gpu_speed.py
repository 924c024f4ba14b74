"""Speed of a device: ceilings, training, sampling, single convolutions, the end of a step."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_correctness import no_tf32, opened
from networks import NETWORKS
from timing import matrix_rate, queued, seconds
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from train_step import our_step

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.flops import count_macs
from edm2lite.network.layers import normalize_weights_
from edm2lite.sampling.guidance import Conditioned
from edm2lite.sampling.levels import karras_sigmas
from edm2lite.sampling.solvers import heun

Row = dict[str, Any]
KINDS = {  # of kernels, by a part of the name; the first that fits
    "attention": ("flash", "fmha", "attention", "sdpa"),
    "compiled": ("triton_",),
    "optimizer": ("multi_tensor", "fusedadam", "fused_adam"),
    "convolution": ("conv", "wgrad", "dgrad", "fprop", "xmma", "implicit"),
    "matrix": ("gemm", "nvjet", "cublas", "cutlass", "addmm", "::mm", "::bmm"),
    "copies": ("memcpy", "memset", "copy", "nchwtonhwc", "nhwctonchw", "cat"),
    "reductions": ("reduce", "norm", "::sum", "::mean"),
}


def ceilings(device: torch.device, tiny: bool) -> Iterator[Row]:
    """What products, copies and launches can reach here."""
    no_tf32()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if tiny and dtype != torch.float32:
            continue
        yield {"dtype": str(dtype)[6:], "matrix_tflops": matrix_rate(device, dtype) / 1e12}
    size = 2**16 if tiny else 2**30
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    taken = min(queued(lambda: target.copy_(source), device) for _ in range(3))
    yield {"copied_gb_per_s": 8e-9 * size / taken}
    one = torch.ones(1, device=device)
    calls = 10 if tiny else 1000
    start = time.perf_counter()
    for _ in range(calls):
        one.add_(1)
    launched = time.perf_counter() - start
    yield {"host_us_per_launch": 1e6 * launched / calls}


def kinds_of_kernels(run: Callable[[], object], device: torch.device, calls: int) -> Row:
    """Milliseconds and launches per call, by kind of kernel, and the time that the device idles."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as found:
        wall = seconds(lambda: [run() for _ in range(calls)], device)
    times: dict[str, float] = collections.defaultdict(float)
    launches = 0
    for event in found.key_averages():
        spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if spent <= 0:
            continue
        name = event.key.lower()
        kind = next((k for k, parts in KINDS.items() if any(p in name for p in parts)), "others")
        times[kind] += spent / 1e3 / calls
        launches += event.count
    busy = sum(times.values())
    ordered = sorted(times.items(), key=lambda item: -item[1])
    row: Row = {"launches": launches / calls, "busy_ms": busy}
    row["wall_ms"] = 1e3 * wall / calls
    return row | {f"{kind}_ms": value for kind, value in ordered}


def _training(name: str, device: torch.device, tiny: bool, batches: list[int]) -> Iterator[Row]:
    dtype = "float32" if tiny else "bfloat16"
    config = PrecondConfig(backbone=NETWORKS["digits" if tiny else name], dtype=dtype)
    unet = config.backbone
    rate = matrix_rate(device, getattr(torch, dtype))
    macs = count_macs(unet).total

    def measured(num: int, compiled: bool) -> Iterator[Row]:
        torch.manual_seed(0)
        shape = (num, unet.img_channels, unet.img_resolution, unet.img_resolution)
        given = (torch.randn(shape) / 2, torch.arange(num) % unet.label_dim,
                 torch.rand(num) + 0.1, torch.randn(shape))  # fmt: skip
        net = Precond(config).to(device).train()
        step = our_step(net, tuple(t.to(device) for t in given), compiled)
        first = seconds(step, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        seconds(step, device)
        taken = min(queued(step, device) for _ in range(1 if tiny else 4))
        flops = 6 * macs * num / taken
        row: Row = {"network": name, "way": "compiled" if compiled else "eager", "batch": num}
        row |= {"img_per_s": num / taken, "ms": 1e3 * taken, "of_matrix_rate": flops / rate}
        row |= {"of_989": flops / 989e12, "first_step_s": first}
        if device.type == "cuda":
            row["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
        yield row
        yield {"kernels_of": row["way"], **kinds_of_kernels(step, device, 1 if tiny else 3)}

    torch.backends.cudnn.benchmark = True
    if not tiny:
        yield from measured(batches[0], True)
    yield from measured(batches[0], False)
    for num in batches[1:]:
        yield from measured(num, True)


def train_xs(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Steps of XS on 64x64 latents: compiled, eager, and compiled with a larger batch."""
    return _training("xs", device, tiny, [4] if tiny else [64, 256])


def train_s(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Steps of S on 64x64 latents, compiled and eager."""
    return _training("s", device, tiny, [4] if tiny else [64])


def sampling(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Evaluations of a prepared network in Heun's method, and how long launching them takes."""
    torch.backends.cudnn.benchmark = True
    yield _sampled("s", device, tiny, is_compiled=False)
    if not tiny:
        yield _sampled("s", device, tiny, is_compiled=True)
        yield _sampled("xs", device, tiny, is_compiled=True)


def _sampled(name: str, device: torch.device, tiny: bool, *, is_compiled: bool) -> Row:
    config, num = NETWORKS["digits" if tiny else name], 4 if tiny else 64
    dtype: Any = "float32" if tiny else "bfloat16"
    net: Any = opened(config, dtype).eval()
    net = net.prepared(dtype=dtype, device=device, compiled=is_compiled)
    if is_compiled:
        net = torch.compile(net, fullgraph=True, dynamic=False)
    denoise = Conditioned(net, (torch.arange(num) % config.label_dim).to(device))
    shape = (num, config.img_channels, config.img_resolution, config.img_resolution)
    x, sigmas = 80 * torch.randn(shape, device=device), karras_sigmas(2 if tiny else 8)
    evaluations = 2 * (len(sigmas) - 1) - 1

    def run() -> None:
        heun(denoise, x, sigmas)

    with torch.no_grad():
        first = seconds(lambda: denoise(x, x.new_full((), 1.0)), device)
    seconds(run, device)
    start = time.perf_counter()
    run()
    launching = time.perf_counter() - start
    taken = min(seconds(run, device) for _ in range(2)) / evaluations
    flops = 2 * count_macs(config).total * num / taken
    return {
        "network": name, "way": "compiled" if is_compiled else "eager", "batch": num,
        "ms_per_evaluation": 1e3 * taken, "img_per_s_at_63": num / (63 * taken),
        "tflops": flops / 1e12, "host_ms_per_evaluation": 1e3 * launching / evaluations,
        "first_s": first,
    }  # fmt: skip


SHAPES = [  # channels in and out, side of the kernel, resolution: those of XS, and the odd ones
    (128, 128, 3, 64), (256, 256, 3, 32), (384, 384, 3, 16), (512, 512, 3, 8), (192, 192, 3, 64),
    (768, 768, 3, 8), (256, 128, 1, 64), (1024, 512, 1, 8), (5, 128, 3, 64), (8, 128, 3, 64),
    (128, 4, 3, 64), (128, 8, 3, 64),
]  # fmt: skip


def convolutions(device: torch.device, tiny: bool) -> Iterator[Row]:
    """TFLOP/s of single convolutions: forward and both gradients, as chosen and by trying."""
    dtype = torch.float32 if tiny else torch.bfloat16
    last: Any = {"memory_format": torch.channels_last}
    for c_in, c_out, side, resolution in SHAPES[: 1 if tiny else None]:
        num = 1 if tiny else 64
        x = torch.randn(num, c_in, resolution, resolution, device=device, dtype=dtype).to(**last)
        y = torch.randn(num, c_out, resolution, resolution, device=device, dtype=dtype).to(**last)
        w = torch.randn(c_out, c_in, side, side, device=device, dtype=dtype).to(**last)
        pad = side // 2
        flops = 2 * side * side * c_in * c_out * num * resolution**2
        row: Row = {"shape": f"{c_in}>{c_out} {side}x{side} at {resolution}"}
        for tried in (False, True):
            torch.backends.cudnn.benchmark = tried
            runs: dict[str, Callable[[], object]] = {
                "fwd": partial(F.conv2d, x, w, padding=pad),
                "dx": partial(_backward, y, x, w, pad, 0),
                "dw": partial(_backward, y, x, w, pad, 1),
            }
            for name, run in runs.items():
                run()
                taken = min(queued(run, device) for _ in range(2))
                row[f"{name}_tried" if tried else name] = flops / taken / 1e12
        yield row


def _backward(y: Tensor, x: Tensor, w: Tensor, pad: int, which: int) -> Tensor | None:
    mask = [which == 0, which == 1, False]
    grads: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(
        y, x, w, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, mask
    )
    return grads[which]


def upsampling(device: torch.device, tiny: bool) -> Iterator[Row]:
    """A transposed 4x4 convolution of stride 2 against a 3x3 one of pixels copied to 2x2."""
    dtype = torch.float32 if tiny else torch.bfloat16
    last: Any = {"memory_format": torch.channels_last}
    torch.backends.cudnn.benchmark = True
    for channels, resolution in [(8, 4)] if tiny else [(512, 8), (384, 16), (256, 32), (576, 16)]:
        shape = (1 if tiny else 64, channels, resolution, resolution)
        x = torch.randn(shape, device=device, dtype=dtype).to(**last).requires_grad_()
        row: Row = {"channels": channels, "from": resolution}
        for name, way, side in (("transposed", _transposed, 4), ("copied", _copied, 3)):
            w = torch.randn(channels, channels, side, side, device=device, dtype=dtype).to(**last)
            forward = partial(way, x.detach(), w)
            forward()
            row[f"{name}_ms"] = 1e3 * min(queued(forward, device) for _ in range(2))
            both = partial(_differentiated, way, x, w.requires_grad_())
            both()
            row[f"{name}_both_ms"] = 1e3 * min(queued(both, device) for _ in range(2))
        yield row


def _transposed(x: Tensor, w: Tensor) -> Tensor:
    return F.conv_transpose2d(x, w, stride=2, padding=1)


def _copied(x: Tensor, w: Tensor) -> Tensor:
    return F.conv2d(F.interpolate(x, scale_factor=2, mode="nearest"), w, padding=1)


def _differentiated(way: Callable[..., Tensor], x: Tensor, w: Tensor) -> None:
    y = way(x, w)
    torch.autograd.grad(y, [x, w], y.detach())


def tail(device: torch.device, tiny: bool) -> Iterator[Row]:
    """What follows the backward pass of a step: time and launches of each part."""
    for name in ("digits",) if tiny else ("xs", "s"):
        net = Precond(PrecondConfig(backbone=NETWORKS[name])).to(device).train()
        num = sum(p.numel() for p in net.parameters())
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        adam = torch.optim.Adam(net.parameters(), lr=1e-4, fused=device.type == "cuda")
        ema = PowerFunctionEMA(net)
        clock = iter(range(10**6, 10**9, 2048))
        parts: dict[str, Callable[[], object]] = {
            "adam": adam.step,
            "averages": partial(_next_update, ema, clock),
            "weight_norm": partial(normalize_weights_, net),
        }
        for part, run in parts.items():
            run()
            taken = min(queued(run, device) for _ in range(2))
            kernels = kinds_of_kernels(run, device, 1)
            launches = kernels["launches"]
            yield {"network": name, "part": part, "ms": 1e3 * taken, "launches": launches}
        yield {"network": name, "parameters": num, "one_pass_gb": 46e-9 * num}


def _next_update(ema: PowerFunctionEMA, clock: Iterator[int]) -> None:
    ema.update(next(clock))
