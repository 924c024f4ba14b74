"""``edm2lite dataset encode-captions``: captions to what a text encoder makes of them, once."""

from __future__ import annotations

import itertools
from pathlib import Path

import click

from edm2lite import processes
from edm2lite.messages.commands import Command

from ._cli import CountBar, plugin_option, user_errors
from ._device import device_option


@click.command(cls=Command)
@click.argument("source", metavar="DATASET")
@click.option(
    "--encoder",
    "name",
    required=True,
    metavar="KIND[:PLACE]",
    help="Text encoder: static (the table in the package wordllama), static:PATH for another table"
    " of embeddings, or transformers:PLACE for a folder or Hub name of CLIP, T5 and others.",
)
@click.option(
    "--tokens",
    "num_tokens",
    type=click.IntRange(1),
    default=77,
    show_default=True,
    help="Number of tokens after which a caption is cut off.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder for the encoded captions.",
)
@device_option
@plugin_option
@user_errors
def main(source: str, name: str, num_tokens: int, out: Path) -> None:
    """Encode the captions of DATASET, each distinct one once; the same command continues.

    A run takes them from there by data.captions=FOLDER, with the text encoder and the mean and
    deviation of its numbers over these captions. A small encoder, as the static table, needs no
    such folder: a run encodes captions as it goes.

    \b
    Examples:
      edm2lite dataset encode-captions emoji-64 --encoder static --tokens 16 --out captions
      edm2lite dataset encode-captions photos.zip --out captions \\
        --encoder transformers:openai/clip-vit-large-patch14
    """
    from edm2lite.claim import claim_folder
    from edm2lite.dataset import open_dataset
    from edm2lite.text import encode_captions, named_text_encoder

    encoder = named_text_encoder(name, num_tokens)
    with claim_folder(out):
        captions = open_dataset(source).captions
        if captions is None:
            raise ValueError(
                f"{source} must have captions to be encoded, it has none; give the images some, as"
                " docs/data.md says"
            )
        texts = itertools.chain.from_iterable(captions.texts)
        with CountBar("encode") as bar:
            store = encode_captions(
                texts, out, encoder, device=str(processes.device()), progress=bar
            )
    pooled, tokens = store.encoder.conditions
    click.echo(f"{len(store)} captions in {out}: {pooled.describe()}, {tokens.describe()}")
