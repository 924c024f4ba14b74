"""``edm2lite adapters factorize``: an adapter, such as an average, as factors of a rank."""

from __future__ import annotations

from pathlib import Path

import click

from edm2lite.messages.commands import Command

from ._cli import plugin_option, user_errors


@click.command(cls=Command)
@click.argument("adapter")
@click.option("--rank", type=click.IntRange(1), required=True, help="Largest rank of a layer.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File of the adapter to write.",
)
@plugin_option
@user_errors
def main(adapter: str, rank: int, out: Path) -> None:
    """Write the best factors of a rank for what ADAPTER adds, and print the error that is left.

    ADAPTER is a file, a run that trains an adapter, or an average of one, which holds all of what
    is added to a layer and no factors. The error is relative to what is added to all layers.

    \b
    Example:
      edm2lite adapters factorize runs/tenth@sigma_rel=0.10 --rank 4 --out tenth.safetensors
    """
    from edm2lite.claim import claim_file
    from edm2lite.models.adapters import factorized, save_adapter
    from edm2lite.models.loading import load_adapter

    with claim_file(out):
        found, error = factorized(load_adapter(adapter), rank)
        click.echo(f"{save_adapter(out, found)}: rank {rank}, relative error {error:.1e}")


if __name__ == "__main__":
    main()
