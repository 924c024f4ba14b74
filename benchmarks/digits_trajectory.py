"""Record the weights of the digits run after every step, for reconstruction_error.py --extra.

Example:
  python benchmarks/digits_trajectory.py digits.npy && \
      python benchmarks/reconstruction_error.py --only extra --extra digits.npy
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import numpy as np
import torch

from edm2lite.ema import PowerFunctionEMA
from edm2lite.training.config import load_config
from edm2lite.training.trainer import Trainer


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--elements", default=4000, show_default=True, help="Number of weights, drawn at random."
)
@click.option(
    "--set", "settings", multiple=True, help="Set a value of the preset, e.g. optim.ref_lr=0.01."
)
def main(out: Path, elements: int, settings: tuple[str, ...]) -> None:
    """Train the digits preset and write the weights that the averages take to OUT.

    OUT holds an array [steps, elements] float32.
    """
    fixed = ["checkpoint_nimg=64000", "snapshot_nimg=64000"]
    config = load_config("digits", [*fixed, *settings])
    steps = config.total_nimg // config.batch_size
    recorded = np.empty((steps, elements), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder) / "run", torch.device("cpu"))
        parameters = list(trainer.net.parameters())
        total = sum(p.numel() for p in parameters)
        rows = torch.from_numpy(np.random.default_rng(0).permutation(total)[:elements])

        class Recorder(PowerFunctionEMA):
            def update(self, nimg: int, *arguments: object) -> None:
                flat = torch.cat([p.detach().flatten() for p in parameters])
                recorded[nimg // config.batch_size - 1] = flat[rows].numpy()
                super().update(nimg)

        trainer.ema = trainer.outputs.ema = Recorder(trainer.net, config.ema.sigma_rels)
        trainer.train()
    np.save(out, recorded)


if __name__ == "__main__":
    main()
