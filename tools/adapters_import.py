"""``edm2lite adapters import``: LoRA files and learned words of other tools as adapters."""

from __future__ import annotations

from pathlib import Path

import click

from edm2lite.messages.commands import Command

from ._cli import plugin_option, user_errors


@click.command(cls=Command)
@click.argument("file")
@click.option("--base", metavar="MODEL", required=True, help="Model that FILE was made for.")
@click.option(
    "--inside-wn",
    "is_inside",
    is_flag=True,
    help="FILE adds its changes before weight normalization, though it does not say so.",
)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="File of the adapter to write."
)
@plugin_option
@user_errors
def main(file: str, base: str, is_inside: bool, out: Path) -> None:
    """Convert FILE, LoRA or textual inversion of another tool, to an adapter.

    FILE is LoRA of kohya's sd-scripts, peft or diffusers, or a folder of these; or a learned word
    of diffusers or A1111's web UI. Layers are found among those of the base by their whole names.
    Nothing in FILE is executed.

    \b
    Example:
      edm2lite adapters import peft-folder --base runs/nine --out cat.safetensors
    """
    from edm2lite.claim import claim_file
    from edm2lite.interop.adapter_import import import_adapter
    from edm2lite.models.adapters import save_adapter
    from edm2lite.models.loading import load

    with claim_file(out):
        adapter = import_adapter(file, load(base), place="inside-wn" if is_inside else None)
        click.echo(save_adapter(out, adapter))
