"""Kernels and memory traffic of a compiled training micro-batch on a GPU, counted without one.

torch.compile translates the loss with its gradient for fake CUDA tensors, of which a driver is
never asked, up to the schedule of Inductor: which operations become one kernel, and what each
reads and writes. Convolutions, products of matrices and attention are kernels of libraries; all
others are generated. Nothing is timed.

The graph is captured on fake CPU tensors, since autograd asks the driver for tensors of a GPU, and
its devices are rewritten before Inductor sees it. A trap: without a driver the backend of
convolutions in bfloat16 is found wrongly, and everything comes out in another memory format. So
everything is counted in float16, whose kernels are as many and as large.
"""

from __future__ import annotations

import contextlib
import copy
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

import click
import torch
import torch.nn.functional as F
from networks import NETWORKS
from torch import Tensor, nn
from torch._inductor import compile_fx, scheduler
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime.hints import DeviceProperties
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.network import block
from edm2lite.network.kernels.step_weights import StepWeights
from edm2lite.network.layers import mp_layers
from edm2lite.network.unet import UNetConfig

GPU = torch.device("cuda", 0)
HOPPER = {
    "multi_processor_count": 132, "major": 9, "minor": 0, "regs_per_multiprocessor": 65536,
    "max_threads_per_multi_processor": 2048, "max_threads_per_block": 1024, "warp_size": 32,
}  # fmt: skip
FEWER_LAUNCHES, FEWER_BYTES = 0.25, 0.20  # the claims: at least, of the generated kernels


@dataclass
class Count:
    """What a graph launches.

    Attributes:
        generated: Number of kernels that Inductor generates.
        library: Number of calls of libraries.
        generated_bytes: Bytes that the generated kernels read and write.
        library_bytes: Bytes that calls of libraries read and write.
    """

    generated: int = 0
    library: int = 0
    generated_bytes: int = 0
    library_bytes: int = 0

    def add(self, nodes: list[Any]) -> None:
        """Count the nodes of a schedule."""
        for node in nodes:
            if isinstance(node, scheduler.NopKernelSchedulerNode):
                continue
            if isinstance(node, scheduler.ExternKernelSchedulerNode):
                self.library += 1
                self.library_bytes += node.get_read_write_buffers_sizes()
            else:
                self.generated += 1
                self.generated_bytes += node.get_read_write_buffers_sizes()


class Counting:
    """A backend of torch.compile that counts the kernels of every graph, and runs none.

    Attributes:
        counts: Of each graph, in the order in which they are made: forward, then backward.
    """

    def __init__(self) -> None:
        self.counts: list[Count] = []

    def __call__(self, graph: Any, inputs: Any) -> Any:
        with torch._inductor.config.patch(force_disable_caches=True):
            return compile_fx.compile_fx(graph, inputs, inner_compile=self._inner)

    def _inner(self, graph: torch.fx.GraphModule, inputs: Any, **options: Any) -> Any:
        mode = torch._guards.detect_fake_mode(inputs)
        assert mode is not None
        moved = _on_gpu(copy.deepcopy(graph))
        with mode:
            there = [_like(t, GPU) if isinstance(t, Tensor) else t for t in inputs]
        FakeTensorProp(moved, mode).propagate_dont_convert_inputs(*there)
        with torch._inductor.config.patch(force_disable_caches=True), _pretended(self.counts):
            compile_fx.compile_fx_inner(moved, there, **options)

        def run(args: list[Any]) -> Any:  # on fake tensors of the CPU
            return list(graph(*args))

        run._boxed_call = True  # type: ignore[attr-defined]
        return run


def _on_gpu(graph: torch.fx.GraphModule) -> torch.fx.GraphModule:
    for node in graph.graph.nodes:
        node.args = tuple(GPU if isinstance(a, torch.device) else a for a in node.args)
        node.kwargs = {k: GPU if k == "device" else v for k, v in node.kwargs.items()}
    return graph


def _like(t: Tensor, device: torch.device) -> Tensor:
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=device)


@contextlib.contextmanager
def _pretended(counts: list[Count]) -> Iterator[None]:
    """A GPU that can be asked for its properties; a graph is scheduled and no code written."""

    def schedule(graph: GraphLowering) -> Any:
        graph._update_scheduler()
        counts.append(Count())
        counts[-1].add(graph.scheduler.nodes)
        return types.SimpleNamespace(call=lambda args: None, __file__="", key="")

    known = {key: value for key, value in HOPPER.items() if key in DeviceProperties._fields}
    device = DeviceProperties(type="cuda", index=0, cc=90, **known)
    properties = types.SimpleNamespace(name="H100", total_memory=80 * 2**30, **HOPPER)
    with contextlib.ExitStack() as stack:
        for target, name, value in (
            (GraphLowering, "compile_to_module", schedule),
            (DeviceProperties, "create", lambda device_: device),
            (torch.cuda, "get_device_properties", lambda *_: properties),
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (scheduler, "has_triton", lambda *_: True),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def flash(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """The operator that attention is on a GPU."""
    y: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]
    return y


def kept_mask(x: Tensor, limit: float) -> Tensor:
    """Clipping as it was compiled before: with a mask for the backward pass."""
    return F.hardtanh(x, -limit, limit)


def count(backbone: UNetConfig, batch_size: int, *, once: bool) -> tuple[list[Count], list[Count]]:
    """Kernels of a micro-batch, forward and backward; and of the weights of a step.

    Args:
        backbone: The network.
        batch_size: Number of images in a micro-batch.
        once: Whether weights are normalized once per step; otherwise the second list is empty.
    """
    torch._dynamo.reset()
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        mock.patch.object(F, "scaled_dot_product_attention", flash),
    ):
        net = Precond(PrecondConfig(backbone=backbone, dtype="float16")).train()
        side, channels = backbone.img_resolution, backbone.img_channels
        images = torch.empty(batch_size, channels, side, side)
        labels = torch.zeros(batch_size, dtype=torch.int64)
        inputs = images, labels, torch.ones(batch_size), torch.empty_like(images)
        step = StepWeights(net, mp_layers(net), torch.float16) if once else None
        loss: nn.Module = DenoisingLoss(net if step is None else step.net)
        micro_batch, weights = Counting(), Counting()
        run: Callable[..., Any] = torch.compile(
            loss, backend=micro_batch, fullgraph=True, dynamic=False
        )
        run(*inputs).loss.mean().backward()
        if step is not None:
            step.normalized.compile(backend=weights, fullgraph=True, dynamic=False)
            step.refresh()
            step.collect(is_first=True)
            step.project()
    return micro_batch.counts, weights.counts


@click.command()
@click.option("--net", "name", type=click.Choice(list(NETWORKS)), default="xs", show_default=True)
@click.option("--batch-size", default=64, show_default=True)
def main(name: str, batch_size: int) -> None:
    """Print a Markdown table.

    \b
    Example:
      python benchmarks/kernels.py --net cifar
    """
    click.echo(f"{name}, batch {batch_size}, float16, torch {torch.__version__}\n")
    click.echo("| forward + backward | generated kernels | GB | library calls | GB |")
    click.echo("|---|---|---|---|---|")
    with mock.patch.object(block, "clip", kept_mask):
        passes, _ = count(NETWORKS[name], batch_size, once=False)
    before = row("weights in every micro-batch, a mask of what is clipped", passes)
    passes, weights = count(NETWORKS[name], batch_size, once=True)
    now = row("weights once per step, no mask", passes)
    row("weights of a step: refresh + project, forward + backward", weights)
    launches = 1 - now.generated / before.generated
    fewer = 1 - now.generated_bytes / before.generated_bytes
    click.echo(f"\n{launches:.0%} fewer generated kernels, {fewer:.0%} fewer bytes")
    if name == "xs":
        assert launches >= FEWER_LAUNCHES and fewer >= FEWER_BYTES


def row(name: str, counts: list[Count]) -> Count:
    """Print the counts of some graphs side by side; returns their sum."""
    cells = [
        " + ".join(str(c.generated) for c in counts),
        " + ".join(f"{c.generated_bytes / 1e9:.2f}" for c in counts),
        " + ".join(str(c.library) for c in counts),
        " + ".join(f"{c.library_bytes / 1e9:.2f}" for c in counts),
    ]
    click.echo(f"| {name} | {' | '.join(cells)} |")
    return Count(
        sum(c.generated for c in counts),
        sum(c.library for c in counts),
        sum(c.generated_bytes for c in counts),
        sum(c.library_bytes for c in counts),
    )


if __name__ == "__main__":
    main()
