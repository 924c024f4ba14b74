"""``edm2lite reconstruct``: EMA weights of any length from the snapshots of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite.messages.commands import Command
from edm2lite.version import __version__

from ._cli import COUNT, DECAYS, DTYPE, FLOATS, ByteBar, FileBar, table, user_errors

if TYPE_CHECKING:
    from edm2lite.ema import Reconstruction

_PATH = click.Path(path_type=Path)
_FOLDER = click.Path(path_type=Path, file_okay=False)
_SOLVER = click.Choice(["calibrated", "paper", "wsm"])


TOPICS = {
    "Averages": "sigma-rel gamma decay lr-log at solver max-error",
    "Output": "out hf config-from dtype json",
    "In place of writing": "dry-run verify",
}


@click.command(cls=Command, topics=TOPICS)
@click.argument("run", type=_PATH)
@click.option("--sigma-rel", type=FLOATS, help="EMA lengths: 0.05,0.10 or 0.02:0.25:0.01.")
@click.option("--gamma", type=FLOATS, help="Exponents (gamma), e.g. 6.94, in place of --sigma-rel.")
@click.option(
    "--decay", type=DECAYS,
    help="Decays of the learning rate to emulate: linear:0.2,cosine:4Mi,1-sqrt:0.05:0.2:0.05.",
)  # fmt: skip
@click.option(
    "--lr-log", metavar="FILE|none", type=_PATH,
    help="Recorded learning rates of RUN: a CSV with the columns nimg and lr, or none for a"
    " constant rate. [default: RUN/stats.jsonl, if it is there]",
)  # fmt: skip
@click.option("--at", "nimg", type=COUNT, help="End of the averages in images. [default: latest]")
@click.option("--out", type=_FOLDER, help="Folder of the averages. [default: RUN/ema]")
@click.option(
    "--hf", type=_PATH, help="Write a folder for from_pretrained of transformers instead."
)
@click.option(
    "--config-from",
    type=_PATH,
    help="--hf: folder with config.json. [default: the latest checkpoint]",
)
@click.option("--dtype", type=DTYPE, help="Dtype of the output. [default: that of the snapshots]")
@click.option(
    "--solver", type=_SOLVER, default="calibrated", show_default=True,
    help="Least expected error, Algorithm 3 of the paper, or WSM's rule for raw checkpoints.",
)  # fmt: skip
@click.option(
    "--max-error", type=float, default=0.02, show_default=True,
    help="Fail if a predicted error exceeds this.",
)  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Print the table and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list in place of the table.")
@click.option("--verify", type=_PATH, help="Rebuild this earlier result and compare.")
@click.version_option(__version__)
@user_errors
def main(
    run: Path,
    sigma_rel: list[float] | None,
    gamma: list[float] | None,
    decay: list[str] | None,
    lr_log: Path | None,
    nimg: int | None,
    out: Path | None,
    hf: Path | None,
    config_from: Path | None,
    dtype: str | None,
    solver: str,
    max_error: float,
    dry_run: bool,
    as_json: bool,
    verify: Path | None,
) -> None:
    """Rebuild EMA weights of any length, or emulate decays, from the snapshots of RUN.

    All averages are rebuilt in one pass over the files. Predicted errors are those of the weights,
    relative to their norm, and include the rounding of --dtype. A file that already exists and was
    made from the same snapshots is kept. Nothing is written if a predicted error exceeds
    --max-error.

    An average emulates a decay of the learning rate: the rate is halved at "rate halves" of the
    run, and "budget" is what is left of the sum of all rates.

    \b
    Examples:
      edm2lite reconstruct runs/digits --sigma-rel 0.02:0.25:0.01 --out runs/digits/ema
      edm2lite reconstruct runs/digits --decay linear:0.2,cosine:0.2,1-sqrt:0.1,power:3:0.2
      edm2lite reconstruct runs/llm --decay cosine:0.2 --hf models/decayed
      edm2lite reconstruct runs/digits --verify runs/digits/ema/ema-0.10000-0000064000.safetensors
    """
    if (sigma_rel, gamma, decay, verify).count(None) != 3 or (lr_log and not decay):
        raise click.UsageError(
            "give the averages with one of --sigma-rel, --gamma and --decay, or --verify; --lr-log"
            " belongs to --decay"
        )
    if (out and hf) or (config_from and not hf):
        raise click.UsageError("--hf takes the place of --out, and --config-from goes with it")
    from edm2lite.ema import plan_targets
    from edm2lite.ema.building import output_paths
    from edm2lite.ema.verification import verify_reconstruction

    if verify is not None:
        count = verify_reconstruction(verify, run, ByteBar("verify"))
        return click.echo(f"{verify}: as rebuilt from {count} snapshots of {run}")
    plans = plan_targets(
        run, sigma_rel=sigma_rel, gamma=gamma, decay=decay, lr_log=lr_log, nimg=nimg,
        solver=solver, anywhere=True, progress=FileBar("plan"),
    )  # fmt: skip
    used, stored = len(plans[0].inputs), plans[0].num_stored
    if used < stored:
        click.echo(
            f"{used} of {stored} snapshots are used; the others add next to nothing", err=True
        )
    output_dtype = dtype or plans[0].inputs[-1].dtype
    plans = [plan.stored_as(output_dtype) for plan in plans]
    paths = output_paths(out or run / "ema", plans)
    if hf is not None:
        paths = [hf] if len(plans) == 1 else [hf / path.stem for path in paths]
    if not dry_run and hf is not None:
        _build_folders(plans, paths, output_dtype, max_error, config_from)
    elif not dry_run:
        _build(plans, paths, output_dtype, max_error)
    rows = [_row(plan, path, max_error) for plan, path in zip(plans, paths, strict=True)]
    click.echo(json.dumps(rows, indent=1) if as_json else _table(rows))


def _build(plans: list[Reconstruction], paths: list[Path], dtype: str, max_error: float) -> None:
    """Write the files that do not exist yet."""
    from edm2lite.claim import claim_folder
    from edm2lite.ema.building import build, is_current
    from edm2lite.ema.targets import check_error

    check_error(plans, max_error)
    pairs, out = list(zip(plans, paths, strict=True)), paths[0].parent
    if all(is_current(path, plan, dtype) for plan, path in pairs):
        return
    with claim_folder(out):
        todo = [plan for plan, path in pairs if not is_current(path, plan, dtype)]
        averages = "1 average" if len(todo) == 1 else f"{len(todo)} averages"
        bar = ByteBar(f"{averages} from {len(plans[0].inputs)} snapshots")
        if todo:  # still: another process may have just ended
            build(todo, out=out, dtype=dtype, progress=bar)


def _build_folders(
    plans: list[Reconstruction],
    paths: list[Path],
    dtype: str,
    max_error: float,
    config_from: Path | None,
) -> None:
    """Write a folder for each average; the snapshots are read once for each."""
    from edm2lite.ema.targets import check_error
    from edm2lite.interop.hugging_face import build_hugging_face

    check_error(plans, max_error)
    for plan, path in zip(plans, paths, strict=True):
        bar = ByteBar(path.name)
        build_hugging_face(plan, path, dtype=dtype, config_from=config_from, progress=bar)


def _row(plan: Reconstruction, path: Path, max_error: float) -> dict[str, Any]:
    """What is known of an average."""
    from edm2lite.ema.schedules import emulated_schedule

    name = {"decay": plan.decay} if plan.decay else {}
    keys = ("sigma_rel", "gamma", "nimg", "predicted_error", "sum_abs")
    row = name | {key: getattr(plan, key) for key in keys}
    row |= {"file": str(path), "above_max_error": not plan.predicted_error <= max_error}
    return row | asdict(emulated_schedule(plan.profile))


def _table(rows: list[dict[str, Any]]) -> str:
    of_decays = "decay" in rows[0]
    keys = ("decay",) if of_decays else ("sigma_rel", "gamma")
    names = {"decay": ""} if of_decays else {"EMA length": ".4f", "gamma": ".3f"}
    numbers = {"predicted_error": ".1e", "sum_abs": ".2f", "halves_at": ".1%", "budget": ".1%"}
    titles = ("predicted error", "sum |x|", "rate halves", "budget")
    columns = names | dict(zip(titles, numbers.values(), strict=True)) | {"file": ""}
    cells = []
    for row in rows:
        file = "none: above --max-error" if row["above_max_error"] else row["file"]
        cells.append([*(row[key] for key in (*keys, *numbers)), file])
    return table(columns, cells)


if __name__ == "__main__":
    main()
