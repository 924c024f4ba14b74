"""Adam, the arithmetic it runs in, and what happens to gradients before it takes them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edm2lite.ema.shards import local_shard, sharded_like
from edm2lite.ema.tensor_lists import views_like

from .config import OptimConfig
from .parallel import ParallelLoss


class Adam(torch.optim.Adam):
    """Adam that tells a GPU its learning rate as a tensor, so that a CUDA graph can hold a step."""

    def step_at(self, lr: float) -> None:
        """One step at a learning rate."""
        for group in self.param_groups:
            group["lr"] = self._rate(lr) if group["fused"] else lr
        self.step()
        for group in self.param_groups:
            group["lr"] = lr  # the form in which checkpoints hold it

    def _rate(self, lr: float) -> Tensor:
        """The learning rate, always in the same memory."""
        if not hasattr(self, "_memory"):
            device = self.param_groups[0]["params"][0].device
            self._memory = torch.empty((), device=device)
        return self._memory.fill_(lr)


def adam(net: nn.Module, config: OptimConfig, device: torch.device) -> Adam:
    """Adam without weight decay; on a GPU in fused kernels.

    Args:
        net: The denoiser, on its device; frozen parameters stay as they are.
        config: Learning rate and moments.
        device: Device of the denoiser.
    """
    return Adam(
        [parameter for parameter in net.parameters() if parameter.requires_grad],
        lr=config.ref_lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=device.type == "cuda",
        capturable=device.type == "cuda",
    )


@contextlib.contextmanager
def training_arithmetic(threads: int | None = None) -> Iterator[None]:
    """How torch computes within the block; afterwards it does so as before.

    Products of float32 are taken in float32 (no TF32), those of half precision are summed in
    float32, and cuDNN tries its algorithms on every new shape, unless deterministic ones were asked
    for.

    Args:
        threads: Number of threads on a CPU, or None for as many as there are.
    """
    cuda, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    settings: list[tuple[Any, str, object]] = [
        (cuda, "allow_fp16_reduced_precision_reduction", False),
        (cuda, "allow_bf16_reduced_precision_reduction", False),
        (cudnn, "benchmark", torch.cuda.is_available() and not cudnn.deterministic),
        *_without_tf32(),
    ]
    before = [getattr(owner, name) for owner, name, _ in settings]
    threads_before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        for owner, name, value in settings:
            setattr(owner, name, value)
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(threads_before)
        for (owner, name, _), value in zip(settings, before, strict=True):
            setattr(owner, name, value)


def _without_tf32() -> list[tuple[Any, str, object]]:
    """Settings by which CUDA does without TF32: torch 2.9 has two kinds, never to be mixed."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    is_older = getattr(cudnn, "fp32_precision", "none") == "none"
    try:
        bool(matmul.allow_tf32), bool(cudnn.allow_tf32)
    except RuntimeError:  # the program has used the newer kind
        is_older = False
    if is_older:
        return [(part, "allow_tf32", False) for part in (matmul, cudnn)]
    return [(part, "fp32_precision", "ieee") for part in (matmul, cudnn.conv, cudnn.rnn)]


@torch.no_grad()
def zero_nonfinite_gradients(loss: ParallelLoss, loss_scale: float) -> Tensor:
    """Divide gradients by the loss scale and set what is not finite in them to 0.

    Nothing waits for a GPU. There, gradients move into one buffer first, so that a single operation
    serves all of them; it is let go with the gradients.

    Args:
        loss: The loss, after its backward passes.
        loss_scale: Factor on the loss during the backward pass.

    Returns:
        L2 norm of the whole gradient, 0-dim float64, the same on all ranks. It is not finite if an
        element was not.
    """
    trained = [p for p in loss.net.parameters() if p.grad is not None]
    grads = [local_shard(p.grad) for p in trained]
    if grads and grads[0].device.type != "cpu":
        grads = _side_by_side(trained, grads)
    if loss_scale != 1:
        torch._foreach_div_(grads, loss_scale)
    norm = loss.square_norm(grads).sqrt()
    if norm.device.type != "cpu" or not norm.isfinite():
        for grad in grads:
            torch.nan_to_num_(grad, nan=0.0, posinf=0.0, neginf=0.0)
    return norm


def _side_by_side(parameters: Sequence[nn.Parameter], grads: Sequence[Tensor]) -> list[Tensor]:
    """Buffers, one for each dtype, that hold the gradients of the parameters from now on.

    Args:
        parameters: Parameters, whose gradients become views of the buffers.
        grads: What this process holds of their gradients.
    """
    groups: dict[torch.dtype, list[int]] = {}
    for i, grad in enumerate(grads):
        groups.setdefault(grad.dtype, []).append(i)
    buffers = []
    for dtype, indices in groups.items():
        found = [grads[i] for i in indices]
        buffer = torch.empty(sum(map(Tensor.numel, found)), dtype=dtype, device=found[0].device)
        views = views_like(buffer, found)
        torch._foreach_copy_(views, found)
        for i, view in zip(indices, views, strict=True):
            parameters[i].grad = sharded_like(view, parameters[i].grad)
        buffers.append(buffer)
    return buffers
