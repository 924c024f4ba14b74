"""``edm2lite adapters``: what adapters hold, models with adapters merged, files of other tools."""

from __future__ import annotations

from pathlib import Path

import click

from edm2lite.messages.commands import Group

from ._adapters import adapters_option
from ._cli import plugin_option, user_errors
from .adapters_export import main as export
from .adapters_factorize import main as factorize
from .adapters_import import main as import_


@click.group(cls=Group)
def main() -> None:
    """Describe, merge, import and export adapters: LoRA, learned classes, hypernetworks."""


@main.command()
@click.argument("file")
@click.option("--base", metavar="MODEL", help="Model that FILE must fit; check that it does.")
@plugin_option
@user_errors
def info(file: str, base: str | None) -> None:
    """Describe FILE, an adapter or a file of another tool; nothing in it is executed.

    FILE is an adapter of ours or a run that trains one; a LoRA file of kohya's sd-scripts, peft or
    diffusers; learned tokens (textual inversion); or a hypernetwork of A1111's web UI.

    \b
    Examples:
      edm2lite adapters info runs/tenth
      edm2lite adapters info pytorch_lora_weights.safetensors --base runs/nine@sigma_rel=0.10
    """
    from edm2lite.interop.adapter_info import describe

    told = describe(file)
    if base is not None:
        from edm2lite.interop.adapter_import import num_fitting_layers
        from edm2lite.models.loading import load

        told["fits"] = f"{num_fitting_layers(file, load(base))} layers of {base}"
    width = max(map(len, told))
    for name, value in told.items():
        click.echo(f"{name:{width}}  {value}")


@main.command()
@click.argument("model")
@adapters_option
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File of the merged model.",
)
@plugin_option
@user_errors
def merge(model: str, adapters: tuple[str, ...], out: Path) -> None:
    """Write MODEL with adapters added to it, as a model like any other.

    Changes are added to the stored weights, which the layers normalize as ever: images are those of
    `edm2lite generate MODEL --adapter ...`, bit for bit.

    \b
    Example:
      edm2lite adapters merge runs/nine@sigma_rel=0.10 --adapter runs/tenth:0.8 \\
        --out tenth.safetensors
    """
    from edm2lite.claim import claim_file
    from edm2lite.models.loading import load
    from edm2lite.models.merging import without_source

    with claim_file(out):
        found = load(model, adapters)
        used = {"base": model, "adapters": found.metadata.get("adapters", "[]")}
        click.echo(found.net.save(out, {**without_source(found.metadata), **used}))


main.add_command(import_, "import")
main.add_command(export, "export")
main.add_command(factorize, "factorize")

if __name__ == "__main__":
    main()
