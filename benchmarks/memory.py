"""What a forward pass keeps for its backward pass, ours against the straightforward network.

Exact and without the memory itself: the pass runs on the meta device, and every tensor that
autograd keeps is counted once, parameters not. This is what grows with the batch. The last column
counts weights, gradients and Adam's moments in, in float32.
"""

from __future__ import annotations

from typing import Any

import click
import torch
from edm2lite.training.dry_run import activation_bytes, kept_bytes
from networks import NETWORKS
from reference import Reference

from edm2lite.flops import num_parameters
from edm2lite.objective import DenoisingLoss
from edm2lite.precond import PrecondConfig

GIB = 2**30
PER_PARAMETER = 4 * 4  # weight, gradient and Adam's two moments, float32
CLAIM = 0.8


@click.command()
@click.option("--batch-size", default=32, show_default=True)
@click.option("--dtypes", default="float32,bfloat16", show_default=True)
def main(batch_size: int, dtypes: str) -> None:
    """Print a Markdown table.

    \b
    Example:
      python benchmarks/memory.py --batch-size 32
    """
    click.echo(f"Batch {batch_size}, eager, torch {torch.__version__}\n")
    click.echo("| network | type | ours kept, GiB | reference kept | ratio | ratio in all |")
    click.echo("|---|---|---|---|---|---|")
    ratios = {}
    for name, unet in NETWORKS.items():
        for dtype in dtypes.split(","):
            config = PrecondConfig(unet=unet, dtype=dtype)  # type: ignore[arg-type]
            ours = activation_bytes(config, batch_size)
            with torch.device("meta"):
                other: Any = Reference(config)  # has the interface of Precond
                loss = DenoisingLoss(other).train()
            theirs = kept_bytes(loss, unet, batch_size)
            fixed = PER_PARAMETER * num_parameters(config)
            ratios[name, dtype] = (ours + fixed) / (theirs + fixed)
            click.echo(
                f"| {name} | {dtype} | {ours / GIB:.3g} | {theirs / GIB:.3g} |"
                f" {ours / theirs:.2f} | {ratios[name, dtype]:.2f} |"
            )
    worst = max(ratio for (name, _), ratio in ratios.items() if name == "s")
    assert worst <= CLAIM, f"S must need at most {CLAIM} of the reference's memory, needs {worst}"


if __name__ == "__main__":
    main()
