"""``edm2lite import``: networks and snapshots of EDM2, ema-pytorch, DiT, SiT; raw checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite.messages.commands import Command

from ._cli import COUNT, FLOATS, ByteBar, table, user_errors

if TYPE_CHECKING:
    from edm2lite.interop.ema_pytorch import Track

_PATH = click.Path(path_type=Path)


TOPICS = {
    "All files": "out batch-size importer",
    "ema-pytorch": "sigma-rel gamma update-every skip-unusable",
    "DiT and SiT": "family vae license",
    "Checkpoints of any training program": "raw clock time-pattern per-step part copy",
}


@click.command(cls=Command, topics=TOPICS)
@click.argument("source", type=_PATH, metavar="FILE|FOLDER")
@click.option("--out", type=_PATH, help="Output file or folder. [default: beside the source]")
@click.option("--batch-size", type=COUNT, help="Images per step. [default: 2048; ema-pytorch: 1]")
@click.option(
    "--sigma-rel", type=FLOATS, help="ema-pytorch: EMA lengths, in the order of training."
)
@click.option("--gamma", type=FLOATS, help="ema-pytorch: exponents, in place of --sigma-rel.")
@click.option(
    "--update-every", type=COUNT, help="ema-pytorch: value used in training (its default: 100)."
)
@click.option(
    "--skip-unusable", is_flag=True, help="ema-pytorch: leave out averages that cannot be used."
)
@click.option(
    "--family",
    type=click.Choice(["dit", "sit"]),
    help="DiT, SiT: what the network was trained as. [default: as the name of FILE begins]",
)
@click.option("--vae", metavar="DIR|NAME", help="DiT, SiT: autoencoder of the latents.")
@click.option(
    "--license", metavar="NAME", help="DiT, SiT: license. [default: that of the released weights]"
)
@click.option("--raw", is_flag=True, help="FOLDER holds checkpoints of any training program.")
@click.option(
    "--clock",
    type=click.Choice(["steps", "tokens", "images"]),
    help="Raw: what is counted. [default: steps]",
)
@click.option(
    "--time-pattern", metavar="REGEX", help="Raw: how a name gives the time, as in 'step(\\d+)'."
)
@click.option("--per-step", type=COUNT, help="Raw: tokens or images of a step.")
@click.option("--part", metavar="NAME", help="Raw: part of each checkpoint that holds the weights.")
@click.option("--copy", is_flag=True, help="Raw: copy weights that could be read where they lie.")
@click.option("--importer", metavar="MODULE:FUNCTION", help="Read FILE by a function of yours.")
@user_errors
def main(
    source: Path,
    out: Path | None,
    batch_size: int | None,
    sigma_rel: list[float] | None,
    gamma: list[float] | None,
    update_every: int | None,
    skip_unusable: bool,
    importer: str | None,
    raw: bool,
    **others: Any,
) -> None:
    """Import networks and snapshots of official EDM2, ema-pytorch, DiT or SiT, and raw checkpoints.

    FILE.pkl, a raw snapshot or a post-hoc reconstruction of EDM2, becomes one model file. A FOLDER
    of raw snapshots (<prefix>-<kimg>-<sigma_rel>.pkl) becomes a run for reconstruct_ema. So does
    the checkpoint folder of ema-pytorch's PostHocEMA (<index>.<step>.pt), whose files do not record
    what they hold: give the settings of training. FILE.pt, a checkpoint of DiT or SiT, and a FOLDER
    of a DiTTransformer2DModel of diffusers become a model file each. Any other FILE is read by a
    function of yours, see docs/extending.md.

    With --raw, the ordinary checkpoints in FOLDER (safetensors, Hugging Face, torch.save,
    torch.distributed.checkpoint) become a run for reconstruct_ema. The time of each is as the
    training recorded it, or in its name. Weights in safetensors files are read where they lie.
    Nothing in any file is executed.

    \b
    Examples:
      edm2lite import edm2-img64-s-1073741-0.075.pkl --out edm2-img64-s.safetensors
      edm2lite import 00000-edm2-img512-xs --out runs/xs
      edm2lite import post-hoc-ema-checkpoints --out runs/imported --sigma-rel 0.05,0.28 \\
          --update-every 10 --batch-size 256 --skip-unusable
      edm2lite import DiT-XL-2-256x256.pt
      edm2lite import theirs.npz --importer my_importer:read --out theirs.safetensors
      edm2lite import trainer_output --raw --clock tokens --per-step 524288 --out runs/llm
    """
    settings = [batch_size, sigma_rel, gamma, update_every, skip_unusable or None]
    dit = {name: others[name] for name in ("family", "vae", "license")}
    times = {name: value for name, value in others.items() if name not in dit}
    is_told = any(value is not None for value in dit.values())
    if raw and (settings != [None] * 5 or is_told or importer is not None):
        raise click.UsageError("--raw takes --out and the options that begin with Raw only")
    if raw:
        return click.echo(_import_raw(source, out, **times))
    if any(times.values()):
        raise click.UsageError("--clock, --time-pattern, --per-step, --part, --copy are for --raw")
    if importer is not None:
        if settings != [None] * 5 or is_told:
            raise click.UsageError("--importer reads everything from the file: give only --out")
        from edm2lite.interop.importers import import_with

        return click.echo(import_with(importer, source, out))
    from edm2lite.interop.formats import written_by

    writer = written_by(source)
    if writer in ("dit", "diffusers"):
        if settings != [None] * 5:
            raise click.UsageError("a DiT takes --out, --family, --vae and --license only")
        return click.echo(_import_dit(source, out, **dit))
    if is_told:
        raise click.UsageError("--family, --vae and --license are for DiT and SiT")
    if writer == "edm2":
        if settings[1:] != [None] * 4:
            raise click.UsageError(
                "files of EDM2 record what they hold: give --out and --batch-size only"
            )
        return click.echo(_import_edm2(source, out, batch_size or 2048))
    if (sigma_rel is None) == (gamma is None) or update_every is None:
        raise click.UsageError(
            "a folder of ema-pytorch needs --update-every, and either --sigma-rel or --gamma"
        )
    from edm2lite.interop import ema_pytorch

    tracks = ema_pytorch.import_folder(
        source,
        out or _imported(source),
        sigma_rels=sigma_rel,
        gammas=gamma,
        update_every=update_every,
        batch_size=batch_size or 1,
        skip_unusable=skip_unusable,
        progress=ByteBar("import"),
    )
    click.echo(_table(tracks))


def _import_dit(source: Path, out: Path | None, **options: Any) -> Path:
    from edm2lite.interop import dit

    given = {name: value for name, value in options.items() if value is not None}
    if source.is_file():
        return dit.import_file(source, out, **given)
    if "family" in given:
        raise click.UsageError("--family is for a FILE; diffusers has DiT only")
    return dit.import_folder(source, out, **given)


def _import_edm2(source: Path, out: Path | None, batch_size: int) -> str:
    """Import a file or a folder of EDM2; returns what to print."""
    from edm2lite.interop import edm2

    bar = ByteBar("import")
    if source.is_file():
        return str(edm2.import_file(source, out, progress=bar))
    out = out or _imported(source)
    files = edm2.import_folder(source, out, batch_size=batch_size, progress=bar)
    return f"{len(files)} snapshots in {out}"


def _import_raw(
    source: Path,
    out: Path | None,
    clock: str | None,
    time_pattern: str | None,
    per_step: int | None,
    part: str | None,
    copy: bool,
) -> str:
    """Import a folder of checkpoints; returns what to print."""
    from edm2lite.interop.checkpoint_times import TimeRule
    from edm2lite.interop.raw_run import import_checkpoints

    rule = TimeRule(clock or "steps", time_pattern, per_step)
    out, bar = out or _imported(source), ByteBar("import")
    infos = import_checkpoints(source, out, rule, part=part, copy=copy, progress=bar)
    columns = {rule.clock: "d", "dtype": "", "weights": "", "checkpoint": ""}
    rows = [
        [i.nimg, i.dtype, "in place" if i.header.shards else "copied", i.header.metadata["source"]]
        for i in infos
    ]
    return f"{table(columns, rows)}\n{len(infos)} snapshots in {out}"


def _imported(source: Path) -> Path:
    """Folder of an imported run, beside its source."""
    return Path(f"{source.resolve()}-imported")


def _table(tracks: Sequence[Track]) -> str:
    columns = {"average": "d", "nominal gamma": ".3f", "tracked gamma": ".3f", "EMA length": "s"}
    rows = []
    for track in tracks:
        width, latest = "-", "unusable: left out"
        if track.gamma >= 0:
            width = f"{track.sigma_rel:.4f}"
            latest = f"{track.nimgs[-1]} (step {track.steps[-1]})"
        exponents = track.nominal_gamma, track.gamma
        rows.append([track.index, *exponents, width, len(track.steps), latest])
    return table({**columns, "files": "d", "latest nimg": ""}, rows)


if __name__ == "__main__":
    main()
