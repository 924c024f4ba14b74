"""``edm2lite adapters export``: adapters as LoRA files of other tools, or as plain weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite.messages.commands import Command

from ._adapters import adapters_option
from ._cli import plugin_option, user_errors

if TYPE_CHECKING:
    from edm2lite.interop.adapter_export import Exported


@click.command(cls=Command)
@click.argument("model")
@adapters_option
@click.option(
    "--to",
    "tool",
    type=click.Choice(["kohya", "peft", "diffusers", "weights", "word"]),
    required=True,
    help="Tool whose keys the file gets; weights: all of MODEL with adapters, normalized weights;"
    " word: a learned word, as textual inversion of diffusers has it.",
)
@click.option(
    "--outside-wn",
    "is_outside",
    is_flag=True,
    help="Write the change of the normalized weights, for tools without weight normalization.",
)
@click.option("--rank", type=click.IntRange(1), help="Largest rank of a layer.")
@click.option(
    "--max-error",
    type=click.FloatRange(0, 1, max_open=True),
    help="Largest relative error of a layer, in place of --rank.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="Output file; for peft, a new folder.",
)
@plugin_option
@user_errors
def main(model: str, adapters: tuple[str, ...], tool: Any, out: Path, **options: Any) -> None:
    """Write adapters of MODEL for other tools, and print the error that this makes.

    Factors are written as they are, to be added inside weight normalization; averages, and changes
    --outside-wn, are approximated by factors of a rank that --rank or --max-error decides.

    \b
    Examples:
      edm2lite adapters export runs/nine --adapter runs/tenth --to kohya --out kohya.safetensors
      edm2lite adapters export runs/nine --adapter runs/tenth --to diffusers --outside-wn \\
        --max-error 0.05 --out outside.safetensors
    """
    if tool in ("weights", "word") and any(options.values()):
        raise click.UsageError(f"--to {tool} takes neither --outside-wn nor a rank or an error")
    if tool == "word" and len(adapters) != 1:
        raise click.UsageError(f"--to word takes one adapter, got {len(adapters)}")
    if options["rank"] is not None and options["max_error"] is not None:
        raise click.UsageError("give either --rank or --max-error")
    from edm2lite.claim import claim_file
    from edm2lite.interop import adapter_export
    from edm2lite.interop.textual_inversion import write_learned_word
    from edm2lite.models.loading import load

    with claim_file(out):
        if tool == "weights":
            click.echo(adapter_export.export_weights(out, load(model, adapters)))
            return
        if tool == "word":
            ((adapter, _),) = adapter_export.with_strengths(adapters)
            click.echo(write_learned_word(out, adapter))
            return
        options["place"] = "outside-wn" if options.pop("is_outside") else "inside-wn"
        base, given = load(model), adapter_export.with_strengths(adapters)
        click.echo(_told(adapter_export.export_lora(out, tool, base, given, **options)))


def _told(found: Exported) -> str:
    ranks, errors = found.ranks.values(), found.errors.values()
    return (
        f"{found.path}: {len(ranks)} layers of rank {min(ranks)} to {max(ranks)}, relative error"
        f" {found.error:.1e} in all, at most {max(errors):.1e} in a layer"
    )
