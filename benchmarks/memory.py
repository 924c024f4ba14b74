"""What a forward pass keeps for its backward pass, ours against the straightforward network.

Counted, not read from an allocator: every tensor that autograd keeps counts once, parameters do
not. The eager networks run on the meta device. A compiled graph has to run, so its memory at two
small batches is extended in a straight line; the backend is torch.compile's own choice of what to
keep, without the kernels. *In all* counts weights, gradients and Adam's moments in, in float32.
"""

from __future__ import annotations

from typing import Any

import click
import torch
from networks import NETWORKS
from reference import Reference
from torch import Tensor

from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.training.dry_run import activation_bytes, kept_bytes, kept_in

GIB = 2**30
PER_PARAMETER = 4 * 4  # weight, gradient and Adam's two moments, float32
CLAIM = 0.8


def reference_bytes(config: PrecondConfig, batch_size: int) -> int:
    with torch.device("meta"):
        other: Any = Reference(config)  # has the interface of Precond
        return kept_bytes(DenoisingLoss(other).train(), config.backbone, batch_size)


def compiled_bytes(config: PrecondConfig, batch_size: int) -> float:
    loss = DenoisingLoss(Precond(config)).train()
    unet, measured = config.backbone, []
    for n in (1, 2):
        torch._dynamo.reset()
        compiled = torch.compile(
            loss, backend="aot_eager_decomp_partition", fullgraph=True, dynamic=False
        )
        x = torch.randn(n, unet.img_channels, unet.img_resolution, unet.img_resolution)
        labels = torch.arange(n) % unet.label_dim

        def run(x: Tensor = x, labels: Tensor = labels, compiled: Any = compiled) -> None:
            compiled(x, labels, torch.ones(len(x)), torch.randn_like(x))

        measured.append(kept_in(run, loss))
    return measured[0] + (batch_size - 1) * (measured[1] - measured[0])


@click.command()
@click.option("--networks", default="digits,xxs,s", show_default=True)
@click.option("--batch-size", default=32, show_default=True)
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
def main(networks: str, batch_size: int, dtypes: str) -> None:
    """Print a Markdown table.

    \b
    Example:
      python benchmarks/memory.py --batch-size 32
    """
    click.echo(f"Batch {batch_size}, GiB kept, torch {torch.__version__}\n")
    click.echo(
        "| network | type | reference | eager | compiled | in all: eager | in all: compiled |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    worst = 0.0
    for name in networks.split(","):
        for dtype in dtypes.split(","):
            config = PrecondConfig(backbone=NETWORKS[name], dtype=dtype)  # type: ignore[arg-type]
            theirs = reference_bytes(config, batch_size)
            ours = [activation_bytes(config, batch_size), compiled_bytes(config, batch_size)]
            fixed = PER_PARAMETER * config.num_parameters()
            in_all = [(kept + fixed) / (theirs + fixed) for kept in ours]
            worst = max(worst, in_all[1]) if name == "s" else worst
            cells = [f"{theirs / GIB:.3g}"]
            cells += [f"{kept / GIB:.3g} ({kept / theirs:.2f})" for kept in ours]
            cells += [f"{ratio:.2f}" for ratio in in_all]
            click.echo(f"| {name} | {dtype} | {' | '.join(cells)} |")
    assert worst <= CLAIM, f"S, compiled, must need at most {CLAIM} in all, needs {worst:.2f}"


if __name__ == "__main__":
    main()
