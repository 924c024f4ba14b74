"""The time of one call, and the rate of the hardware, for benchmarks that time things in turn."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time of one call, with the device idle before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    wait()
    start = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - start


def queued(run: Callable[[], object], device: torch.device, calls: int = 10) -> float:
    """Time of one call among many; on a GPU they are launched one after the other, without waiting.

    Waiting before and after each call would leave a GPU idle until the first kernels are launched,
    and again while the last ones are. A CPU does nothing ahead, and is given one call.
    """

    def all_calls() -> None:
        for _ in range(calls):
            run()

    if device.type == "cpu":
        return seconds(run, device)
    return seconds(all_calls, device) / calls


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a large product of matrices and a large 3x3 convolution.

    Both, because libraries differ: on a CPU of AMD the convolutions of oneDNN are twice as fast as
    the products of MKL.
    """
    n = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    images = torch.randn(8, 128, n // 32, n // 32, device=device, dtype=dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)
    work: list[tuple[float, Callable[[], object]]] = [
        (2 * n**3, lambda: a @ b),
        (2 * 9 * 128 * images.numel(), lambda: F.conv2d(images, weight, padding=1)),
    ]
    rates = []
    with torch.no_grad():
        for flops, run in work:
            run()
            rates.append(flops / min(queued(run, device) for _ in range(8)))
    return max(rates)
