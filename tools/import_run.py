"""``edm2lite import``: snapshots that other tools wrote, as snapshots of ours."""

from __future__ import annotations

from pathlib import Path

import click

from ._cli import COUNT, FLOATS, ByteBar, table, user_errors

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("folder", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="Folder for the run.")
@click.option("--sigma-rel", type=FLOATS, help="Tracked widths in the order of training.")
@click.option("--gamma", type=FLOATS, help="Tracked exponents, in place of --sigma-rel.")
@click.option(
    "--update-every", type=COUNT, required=True, help="As in training (PostHocEMA's default: 100)."
)
@click.option(
    "--batch-size", type=COUNT, default="1", show_default=True, help="Images per update() call."
)
@click.option("--skip-unusable", is_flag=True, help="Leave out averages that cannot be used.")
@user_errors
def main(
    folder: Path,
    out: Path,
    sigma_rel: list[float] | None,
    gamma: list[float] | None,
    update_every: int,
    batch_size: int,
    skip_unusable: bool,
) -> None:
    """Import the PostHocEMA checkpoints of ema-pytorch in FOLDER, <index>.<step>.pt.

    With update_every above 1, ema-pytorch tracks another profile than it was asked for. The
    snapshots record what it really tracked, on the clock on which that is a power function, and
    the table shows it. No pickled object is executed.

    \b
    Example:
      edm2lite import post-hoc-ema-checkpoints --out runs/imported --sigma-rel 0.05,0.28 \\
          --update-every 10 --batch-size 256 --skip-unusable
    """
    from edm2lite.interop.ema_pytorch import import_folder

    if (sigma_rel is None) == (gamma is None):
        raise click.UsageError("give the tracked lengths with either --sigma-rel or --gamma")
    tracks = import_folder(
        folder,
        out,
        sigma_rels=sigma_rel,
        gammas=gamma,
        update_every=update_every,
        batch_size=batch_size,
        skip_unusable=skip_unusable,
        progress=ByteBar("import"),
    )
    columns = {"average": "d", "asked gamma": ".3f", "tracked gamma": ".3f", "sigma_rel": "s"}
    rows = []
    for track in tracks:
        usable = track.gamma >= 0
        rows.append(
            [track.index, track.nominal_gamma, track.gamma]
            + [f"{track.sigma_rel:.4f}" if usable else "-", len(track.steps)]
            + [f"{track.nimgs[-1]} (step {track.steps[-1]})" if usable else "unusable: left out"]
        )
    click.echo(table({**columns, "files": "d", "latest nimg": ""}, rows))


if __name__ == "__main__":
    main()
