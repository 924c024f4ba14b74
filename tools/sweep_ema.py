"""``sweep_ema``: EMA length against the Fréchet distance."""

from __future__ import annotations

from pathlib import Path

import click

from ._cli import COUNT, FLOATS, progress, user_errors


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--sigma-rel", type=FLOATS, required=True, help="Lengths, e.g. 0.02:0.25:0.01.")
@click.option(
    "--ref",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="Reference statistics, made by `edm2lite evaluate stats`.",
)
@click.option("--num", type=COUNT, default=50_000, show_default=True, help="Images per length.")
@click.option(
    "--steps", type=click.IntRange(1), default=32, show_default=True, help="Steps of the sampler."
)
@click.option(
    "--at",
    "nimg",
    type=COUNT,
    metavar="NIMG",
    help="End of the averages in images. [default: the latest snapshot]",
)
@click.option(
    "--batch", type=click.IntRange(1), default=64, show_default=True, help="Images at a time."
)
@click.option(
    "--weights",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File with the extractor's weights. [default: as the reference was made]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for sweep.csv, sweep.png and the ledger. [default: RUN]",
)
@user_errors
def main(
    run: Path,
    sigma_rel: list[float],
    ref: Path,
    num: int,
    steps: int,
    nimg: int | None,
    batch: int,
    weights: Path | None,
    out: Path | None,
) -> None:
    """Measure the Fréchet distance of RUN's model at several EMA lengths.

    Every length uses the same seeds, and the raw last weights are measured along. Points already in
    the ledger (sweep.jsonl) are not measured again, so the same command continues, and a longer
    list extends.

    \b
    Example:
      sweep_ema runs/a --sigma-rel 0.02:0.25:0.01 --ref imagenet.safetensors --num 5000
    """
    import torch

    from edm2lite import plots, sweep
    from edm2lite.ema import plan_targets
    from edm2lite.fidelity import FeatureStats, extractor_weights, open_extractor
    from edm2lite.measure import Measurer
    from edm2lite.tensorfile import read_header

    out = out if out is not None else run
    reference = FeatureStats.load(ref)
    plans = plan_targets(run, sigma_rel=sorted(set(sigma_rel)), nimg=nimg)
    setting = sweep.Setting(
        run=plans[0].inputs[-1].run,
        nimg=plans[0].nimg,
        num=num,
        num_steps=steps,
        extractor=reference.extractor,
        reference=read_header(ref).digest or "",
    )
    ledger = sweep.Ledger(out / "sweep.jsonl")
    wanted: list[float | None] = [None, *(plan.sigma_rel for plan in plans)]
    todo = [length for length in wanted if ledger.get(setting, length) is None]
    if todo:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        extractor = open_extractor(
            reference.extractor, extractor_weights(reference, weights), device
        )
        measurer = Measurer(
            reference, extractor, num=num, num_steps=steps, batch=batch, device=device
        )
        with progress(total=len(todo) * num, desc="sweep", unit="img") as bar:
            for measured in measurer.points(run, plans, todo, bar):
                ledger.add(setting, measured)
    points = [point for length in wanted if (point := ledger.get(setting, length)) is not None]
    sweep.write_csv(out / "sweep.csv", points)
    title = f"{num} images, {steps} steps, {reference.extractor}, {plans[0].nimg:,} training images"
    plots.plot_sweep(out / "sweep.png", points, title)
    lowest = sweep.best(points)
    click.echo(f"{'sigma_rel':>9}  {'gamma':>8}  {'FD':>9}")
    for point in points:
        name = "raw" if point.sigma_rel is None else f"{point.sigma_rel:.4f}"
        gamma = "" if point.gamma is None else f"{point.gamma:.3f}"
        click.echo(f"{name:>9}  {gamma:>8}  {point.fd:9.4f}{'  best' if point is lowest else ''}")


if __name__ == "__main__":
    main()
