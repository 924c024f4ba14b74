"""The pictures of docs/sampling.md, made by the digits model of ``edm2lite demo``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.dataset import open_dataset
from edm2lite.models.loading import Model, load
from edm2lite.network.conditioning import Conditioning
from edm2lite.plotting.images import plot_images
from edm2lite.sampling.editing import Inpaint
from edm2lite.sampling.generation import generate
from edm2lite.sampling.guidance import APG, Conditioned, Guided
from edm2lite.sampling.levels import first_state, karras_sigmas, sigmas_from
from edm2lite.sampling.settings import Sampling
from edm2lite.sampling.solvers import heun, heun_steps

CLASSES = list(range(10)) * 2
Row = tuple[str, NDArray[np.uint8]]


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), default="docs/images", show_default=True)
def main(run: Path, out: Path) -> None:
    """Draw sampling-*.png from the digits RUN.

    \b
    Example:
      python -m edm2lite.training digits --out runs/digits
      python benchmarks/plot_sampling.py runs/digits
    """
    model, guide = load(f"{run}@sigma_rel=0.14"), load(f"{run}@sigma_rel=0.2,nimg=12800")
    _draw(out / "sampling-guidance.png", _guidance(model, guide))
    _draw(out / "sampling-solvers.png", _solvers(model))
    _draw(out / "sampling-steps.png", *_steps(model))
    _draw(out / "sampling-editing.png", _editing(model, guide))


def _guidance(model: Model, guide: Model) -> list[Row]:
    settings = {
        "no guidance": Sampling(),
        "weight 2": Sampling(guidance=2.0),
        "weight 4": Sampling(guidance=4.0),
        "4, steps 15-21": Sampling(guidance=4.0, interval=(15, 21)),
        "4, rescale 0.7": Sampling(guidance=4.0, rescale=0.7),
        "4, APG": Sampling(guidance=4.0, apg=APG(max_norm=2.0, momentum=-0.5)),
    }
    return [(name, _images(model, s, guide)) for name, s in settings.items()]


def _solvers(model: Model) -> list[Row]:
    settings = {
        "heun, 63 calls": Sampling(num_steps=32),
        "heun, 9 calls": Sampling(num_steps=5),
        "dpmpp_2m, 9 calls": Sampling(num_steps=9, solver="dpmpp_2m"),
        "euler, 9 calls": Sampling(num_steps=9, solver="euler"),
    }
    return [(name, _images(model, s)) for name, s in settings.items()]


def _steps(model: Model) -> tuple[list[Row], list[str]]:
    """One image on its way, x and its preview, at every second step."""
    sigmas = karras_sigmas(32)
    net = model.net.prepared()
    generator = torch.Generator().manual_seed(3)
    x = first_state(torch.randn(1, 1, 8, 8, generator=generator), sigmas)
    states = list(heun_steps(Conditioned(net, Conditioning.of(torch.tensor([5]))), x, sigmas))[1::2]
    scaled = [s.x * 0.5 / (s.sigma**2 + 0.25) ** 0.5 for s in states]  # to the data's deviation
    rows = [
        ("x", model.encoder.decode(torch.cat(scaled)).numpy()),
        ("D_x", model.encoder.decode(torch.cat([s.D_x for s in states])).numpy()),
    ]
    return rows, [f"{s.sigma:.2g}" for s in states]


def _editing(model: Model, guide: Model) -> list[Row]:
    """Real digits: noised and sampled from there; the upper half filled in."""
    digits = open_dataset("digits")
    assert digits.labels is not None
    places = [np.flatnonzero(digits.labels == c)[20 + i] for i, c in enumerate(CLASSES)]
    real = torch.from_numpy(digits.images([int(i) for i in places]))
    x = model.encoder.encode(real)
    told = Conditioning.of(torch.tensor(CLASSES))
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    sigma = 0.8
    sigmas = sigmas_from(karras_sigmas(32), sigma)
    noised = x + sigma * noise
    net = model.net.prepared()
    weaker = guide.net.prepared()
    varied = heun(Conditioned(net, told), noised, sigmas)
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    guided = Guided(Conditioned(net, told), Conditioned(weaker, told), 1.5)
    sigmas = karras_sigmas(32)
    filled = heun(Inpaint(guided, x, mask), x + sigmas[0].float() * noise, sigmas)

    def decode(x: Tensor) -> NDArray[np.uint8]:
        return model.encoder.decode(x).numpy()

    hidden = torch.where(mask.bool(), real.float().mean().to(torch.uint8), real)
    return [
        ("real", real.numpy()),
        (f"noised, sigma {sigma:g}", decode(noised)),
        ("sampled from there", decode(varied)),
        ("real, upper half hidden", hidden.numpy()),
        ("filled in", decode(filled)),
    ]


def _images(model: Model, sampling: Sampling, guide: Model | None = None) -> NDArray[np.uint8]:
    weaker = guide if sampling.guidance != 1 else None
    seeds = range(len(CLASSES))
    images = generate(model, seeds, classes=CLASSES, sampling=sampling, guide=weaker, device="cpu")
    return images.numpy()


def _draw(path: Path, rows: Sequence[Row], columns: Sequence[str] | None = None) -> None:
    names = [str(c) for c in CLASSES] if columns is None else columns
    plot_images(path, [row for _, row in rows], [name for name, _ in rows], names)
    click.echo(path)


if __name__ == "__main__":
    main()
