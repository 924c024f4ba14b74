"""Record the weights of examples/language_model.py after every step, for decay_error.py --extra.

Example:
  python benchmarks/language_model_trajectory.py lm.npy && \
      python benchmarks/decay_error.py --extra lm=lm.npy
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import language_model as example


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--elements", default=4000, show_default=True, help="Number of weights, at random.")
@click.option("--seed", default=3, show_default=True, help="Seed of the run.")
def main(out: Path, elements: int, seed: int) -> None:
    """Train at a constant rate and write an array [steps, elements] float32 to OUT."""
    torch.set_num_threads(1)
    training = example.Training(seed, example.WIDTH, example.texts()[0])
    parameters = list(training.model.parameters())
    total = sum(p.numel() for p in parameters)
    rows = torch.from_numpy(np.random.default_rng(0).permutation(total)[:elements])
    recorded = np.empty((example.STEPS, elements), np.float32)

    def after(step: int) -> None:
        flat = torch.cat([p.detach().flatten() for p in parameters])
        recorded[step - 1] = flat[rows].numpy()

    training.run(example.STEPS, after=after)
    np.save(out, recorded)


if __name__ == "__main__":
    main()
