"""``edm2lite magnitudes``: the magnitudes of a network against 1, and its cost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edm2lite.extras import require
from edm2lite.messages.commands import Command

from ._cli import plugin_option, table, user_errors

if TYPE_CHECKING:
    from torch import Tensor

    from edm2lite.models.loading import Model
    from edm2lite.network.conditioning import Conditioning
    from edm2lite.network.magnitudes import Magnitude

_PATH = click.Path(path_type=Path, dir_okay=False)


@click.command(cls=Command)
@click.argument("model", required=False)
@click.option("--data", help="Data set to measure on. [default: white noise]")
@click.option(
    "--num",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Number of images to measure on.",
)
@click.option(
    "--limit",
    type=click.FloatRange(1, min_open=True),
    default=4.0,
    show_default=True,
    help="Flag magnitudes that are off by more than this factor.",
)
@click.option("--all", "every", is_flag=True, help="Show every layer, not only blocks.")
@click.option("--out", type=_PATH, help="PNG to draw into.")
@click.option("--flops", is_flag=True, help="Count parameters and multiply-accumulates instead.")
@plugin_option
@user_errors
def main(
    model: str | None,
    data: str | None,
    num: int,
    limit: float,
    every: bool,
    out: Path | None,
    flops: bool,
) -> None:
    """Measure activations and weights of MODEL, layer by layer, against 1.

    The magnitude of an activation is the RMS of each feature over pixels, averaged over images and
    features. Stored weights have RMS 1 in training; averages of them are slightly smaller. If MODEL
    is a run that logged magnitudes (magnitudes_nimg), the last relative updates are shown too, and
    the plot covers all of training. With --flops and no MODEL, show the cost of every shipped
    configuration.

    \b
    Examples:
      edm2lite magnitudes runs/digits --data digits --out magnitudes.png
      edm2lite magnitudes --flops
    """
    if flops:
        from ._cost import cost_table

        click.echo(cost_table(model))
        return
    if model is None:
        raise click.UsageError(
            "give a MODEL to measure, or --flops for the cost of all shipped configurations"
        )
    if out is not None:
        require("matplotlib")
    from edm2lite.diffusion.measure import measure_denoiser
    from edm2lite.models.loading import load
    from edm2lite.network.magnitudes import read_log

    loaded = load(model)
    layers = measure_denoiser(loaded.net, *_images(loaded, data, num))
    log = read_log(Path(model) / "magnitudes.jsonl") if Path(model).is_dir() else []
    updates = {m.name: m.update for m in log[-1][1]} if log else {}
    flagged = [m for m in layers if m.leaves_regime(limit)]
    shown = [m for m in layers if every or m.is_block or m in flagged]
    click.echo(_table(shown, updates, limit))
    verdict = f"{len(flagged)} of {len(layers)} layers and blocks are off by more than {limit:g}x"
    click.echo(verdict + (": " + ", ".join(m.name for m in flagged[:5]) if flagged else ""))
    if out is not None:
        from edm2lite.plotting.magnitudes import plot_magnitudes

        plot_magnitudes(out, layers, log)
        click.echo(str(out))


def _table(layers: list[Magnitude], updates: dict[str, float | None], limit: float) -> str:
    columns = {"layer": "", "output": "", "expected": ".3f", "activation": ".3f", "largest": ".3f"}
    rows = []
    for m in layers:
        update = updates.get(m.name)
        rows.append(
            [
                *(m.name, m.resolution or "vector", m.expected, m.activation, m.largest),
                "" if m.weight is None else f"{m.weight:.4f}",
                "" if update is None else f"{update:.1e}",
                "off" if m.leaves_regime(limit) else "",
            ]
        )
    return table({**columns, "weight": "", "update": "", "": ""}, rows)


def _images(model: Model, data: str | None, num: int) -> tuple[Tensor, Conditioning]:
    """Images [N, C, H, W] of standard deviation sigma_data, and their conditions."""
    import torch

    from edm2lite.dataset import open_dataset
    from edm2lite.dataset.text import told_by
    from edm2lite.network.told import values_of

    config = model.net.config
    network = config.backbone
    if data is None:
        shape = (num, network.img_channels, network.img_resolution, network.img_resolution)
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        return noise * config.sigma_data, values_of(network.conditions, "in_turn", range(num))
    dataset = told_by(open_dataset(data), model.text_encoder)
    rows = range(0, len(dataset), max(1, len(dataset) // num))[:num]
    told = dataset.conditioning(rows).only(network.condition_names)
    raw = torch.from_numpy(dataset.images(rows))
    drawn = torch.randn(len(rows), *dataset.image_shape, generator=torch.Generator().manual_seed(1))
    return model.encoder.encode(raw, drawn), told
