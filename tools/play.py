"""``edm2lite play``: a page on this machine with the EMA length as a slider."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import click

from edm2lite.extras import require
from edm2lite.messages.commands import Command

from ._cli import plugin_option, user_errors


@click.command(cls=Command)
@click.argument("run", metavar="RUN|MODEL")
@click.option(
    "--adapter",
    "--control-net",
    "adapters",
    multiple=True,
    metavar="FILE[:STRENGTH]",
    help="Add what fine-tuning has made of the model, with a slider for its strength; repeatable.",
)
@click.option(
    "--sweep",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Folder of the sweep whose curve is shown. [default: RUN]",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=7860,
    show_default=True,
    help="Port of the page on 127.0.0.1; 0 for any that is free.",
)
@plugin_option
@user_errors
def main(run: str, adapters: tuple[str, ...], sweep: Path | None, port: int) -> None:
    """Play with a RUN in the browser: choose an EMA length, and see its images.

    The average is rebuilt from the snapshots whenever the slider moves. Class or prompt, guidance,
    seeds, steps, adapters and control images are there if the model takes them. RUN may still be
    training. A MODEL that is no run is played without the slider.

    The page is for this machine alone: it is served on 127.0.0.1, and needs no other connection.

    \b
    Examples:
      edm2lite play runs/digits
      edm2lite play runs/digits --sweep sweeps/length --port 8000
    """
    from ._play_server import listen

    with tempfile.TemporaryDirectory() as pictures, listen(port) as socket:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # both are read when it is imported
        os.environ["GRADIO_TEMP_DIR"] = pictures
        require("gradio")
        require("matplotlib")
        from edm2lite.play import Session

        from ._play_page import page
        from ._play_server import serve

        serve(page(Session(run, adapters, sweep=sweep)), socket, click.echo)


if __name__ == "__main__":
    main()
