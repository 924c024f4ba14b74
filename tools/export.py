"""``edm2lite export``: a model with its card, as a folder and on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from ._cli import user_errors


@click.command()
@click.argument("model")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder."
)
@click.option("--licence", required=True, help="Of the weights, e.g. apache-2.0.")
@click.option("--push", metavar="USER/NAME", help="Also upload it to the Hub, as this repository.")
@click.option("--private", is_flag=True, help="With --push: make a private repository.")
@user_errors
def main(model: str, out: Path, licence: str, push: str | None, private: bool) -> None:
    """Write MODEL (a file, a run, or an average of any length of a run) and its card to a folder.

    The card states the EMA length, the training time, the predicted error, and the snapshots and
    coefficients that the weights were made of. `edm2lite generate FOLDER` uses such a folder.

    \b
    Examples:
      edm2lite export runs/digits@sigma_rel=0.13 --licence apache-2.0 --out digits
      edm2lite export model.safetensors --licence mit --out digits --push me/edm2-digits
    """
    from edm2lite.models.hub import push_to_hub, save_pretrained

    if private and push is None:
        raise click.UsageError("--private is for a repository that --push makes")
    click.echo(save_pretrained(model, out, licence=licence, name=push))
    if push is not None:
        click.echo(push_to_hub(out, push, licence=licence, private=private))


if __name__ == "__main__":
    main()
