"""``edm2lite import``: networks and snapshots that other tools wrote, as files of ours."""

from __future__ import annotations

from pathlib import Path

import click

from ._cli import COUNT, FLOATS, ByteBar, table, user_errors

_PATH = click.Path(path_type=Path)


@click.command()
@click.argument("source", type=_PATH, metavar="FILE.pkl|FOLDER")
@click.option("--out", type=_PATH, help="File or folder to write. [default: beside the source]")
@click.option("--batch-size", type=COUNT, help="Images per step. [default: 2048; ema-pytorch: 1]")
@click.option("--sigma-rel", type=FLOATS, help="ema-pytorch: widths in the order of training.")
@click.option("--gamma", type=FLOATS, help="ema-pytorch: exponents, in place of --sigma-rel.")
@click.option("--update-every", type=COUNT, help="ema-pytorch: as in training (its default: 100).")
@click.option("--skip-unusable", is_flag=True, help="ema-pytorch: leave out what cannot be used.")
@user_errors
def main(
    source: Path,
    out: Path | None,
    batch_size: int | None,
    sigma_rel: list[float] | None,
    gamma: list[float] | None,
    update_every: int | None,
    skip_unusable: bool,
) -> None:
    """Import networks and snapshots of official EDM2 or of ema-pytorch.

    FILE.pkl is a network of EDM2, raw or rebuilt: it becomes one model file. A FOLDER of its raw
    snapshots (<prefix>-<kimg>-<sigma_rel>.pkl) becomes a run for reconstruct_ema, and so does the
    checkpoint folder of ema-pytorch's PostHocEMA (<index>.<step>.pt), whose files do not say what
    they hold: give the settings of training. Nothing in any file is executed.

    \b
    Examples:
      edm2lite import edm2-img64-s-1073741-0.075.pkl --out edm2-img64-s.safetensors
      edm2lite import 00000-edm2-img512-xs --out runs/xs
      edm2lite import post-hoc-ema-checkpoints --out runs/imported --sigma-rel 0.05,0.28 \\
          --update-every 10 --batch-size 256 --skip-unusable
    """
    from edm2lite.interop import edm2, ema_pytorch
    from edm2lite.interop.formats import written_by

    writer, bar = written_by(source), ByteBar("import")
    foreign = [sigma_rel, gamma, update_every, skip_unusable or None]
    if writer == "edm2" and foreign != [None] * 4:
        raise click.UsageError("files of EDM2 say what they hold: give --out and --batch-size only")
    if source.is_file():
        click.echo(edm2.import_file(source, out, progress=bar))
        return
    out = out or Path(f"{source.resolve()}-imported")
    if writer == "edm2":
        files = edm2.import_folder(source, out, batch_size=batch_size or 2048, progress=bar)
        click.echo(f"{len(files)} snapshots in {out}")
        return
    if (sigma_rel is None) == (gamma is None) or update_every is None:
        raise click.UsageError(
            "a folder of ema-pytorch needs --update-every, and either --sigma-rel or --gamma"
        )
    tracks = ema_pytorch.import_folder(
        source,
        out,
        sigma_rels=sigma_rel,
        gammas=gamma,
        update_every=update_every,
        batch_size=batch_size or 1,
        skip_unusable=skip_unusable,
        progress=bar,
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
