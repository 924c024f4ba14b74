"""``edm2lite export``: a model with its card, as a folder and on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import click

from edm2lite.extras import require
from edm2lite.messages.commands import Command

from ._cli import plugin_option, user_errors
from ._notes import note_raw_weights


def _current_name(option: str) -> str:
    return "license" if option == "licence" else option  # the name in 0.1; codespell:ignore licence


@click.command(cls=Command, context_settings={"token_normalize_func": _current_name})
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the model and its card.",
)
@click.option(
    "--license",
    metavar="NAME",
    help="License of the weights, e.g. apache-2.0. [default: the one that the file states]",
)
@click.option("--push", metavar="USER/NAME", help="Also upload it to this repository of the Hub.")
@click.option("--private", is_flag=True, help="With --push: create a private repository.")
@click.option(
    "--samples",
    type=click.IntRange(0),
    metavar="N",
    help="Number of images in the card. [default: 16, or none where a model cannot be sampled here,"
    " or not within minutes]",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    help="What the images in the card show, for a model that is told text; repeatable.",
)
@plugin_option
@user_errors
def main(
    model: str,
    out: Path,
    license: str | None,
    push: str | None,
    private: bool,
    samples: int | None,
    prompts: tuple[str, ...],
) -> None:
    """Write MODEL (a file, a run, or an average of any length of a run) and its card to a folder.

    The card shows images, and states the data, the configuration of the training, what sweeps in
    the folder of the run have measured, the EMA length, the predicted error, and the snapshots and
    coefficients of which the weights are made. `edm2lite generate FOLDER` uses such a folder. After
    an upload that failed, the same command uploads the folder that is there.

    \b
    Examples:
      edm2lite export runs/digits@sigma_rel=0.13 --license apache-2.0 --out digits
      edm2lite export model.safetensors --license mit --out digits --push me/edm2-digits
    """
    from edm2lite.claim import claim_folder
    from edm2lite.models.hub import upload_folder
    from edm2lite.sweep.publish import export_model

    if private and push is None:
        raise click.UsageError("--private is for a repository that --push creates")
    if push is not None:
        require("huggingface_hub")
    with claim_folder(out):
        note_raw_weights(model)
        click.echo(
            export_model(
                model, out, license=license, title=push, samples=samples, prompts=prompts,
                note=lambda text: click.echo(text, err=True),
            )
        )  # fmt: skip
        if push is not None:
            click.echo(upload_folder(out, push, private=private))


if __name__ == "__main__":
    main()
