"""The command ``edm2lite train``, which is ``edm2lite.training`` under torchrun."""

from __future__ import annotations

import logging
import os
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

import click

from edm2lite import processes
from edm2lite.messages import one_line
from edm2lite.messages.commands import Command
from edm2lite.version import __version__

from .manifest import finished
from .start import Start

if TYPE_CHECKING:
    from .config import RunConfig


TOPICS = {
    "Your own pictures": "data resolution",
    "Where it begins": "init fork",
    "Run": "out set device dry-run",
}


@click.command(cls=Command, topics=TOPICS)
@click.argument("config", required=False)
@click.option(
    "--data",
    metavar="PICTURES",
    help="Folder of pictures (folders in it are classes), ZIP or data set. What CONFIG does not say"
    " is chosen by them; without CONFIG, everything is.",
)
@click.option(
    "--resolution",
    type=click.IntRange(1),
    help="Side in pixels that the pictures of --data get. [default: by their size and the device]",
)
@click.option("--init", metavar="MODEL", help="Fine-tune this model.")
@click.option(
    "--fork",
    "branch",
    metavar="RUN@NIMG",
    help="Begin with a checkpoint of RUN, and go on in another way: another learning rate, say.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the run; an existing run is continued.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Print the complete configuration and its cost; write nothing.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a value of the configuration, e.g. optim.ref_lr=0.005. Repeatable.",
)
@click.option(
    "--device",
    metavar="cpu|cuda|cuda:N",
    help="Where to train. [default: a GPU for each process if there are any, else the CPU]",
)
@click.version_option(__version__)
def main(config: str | None, out: Path, dry_run: bool, device: str | None, **options: Any) -> None:
    """Train a network on your pictures, or that of CONFIG.

    CONFIG is a YAML file or the name of a shipped configuration. The same command line starts a
    run, continues it after an interruption, and extends it. SIGTERM and SIGUSR1 end the run after
    the current step with a checkpoint and exit code 0, Ctrl-C with exit code 130; a second Ctrl-C
    stops at once.

    Continue only runs that you trust: checkpoints contain a pickle, which can execute anything.

    \b
    Examples:
      edm2lite train --data PHOTOS --out runs/photos
      edm2lite train small-64 --data PHOTOS --out runs/large
      edm2lite train --data FEW --init runs/photos@sigma_rel=0.1 --out runs/tuned
      edm2lite train --fork runs/photos@64000 --set optim.ref_lr=0.01 --out runs/slower
      edm2lite train digits --out runs/digits
      edm2lite train my.yaml --set total_nimg=4Mi --set optim.ref_lr=0.005 --out runs/a
      torchrun --standalone --nproc_per_node=8 -m edm2lite.training my.yaml --out runs/a
    """
    logging.basicConfig(format="%(message)s")
    processes.watch_launcher()
    try:
        processes.choose_device(device)
        with processes.interruptible():
            _run(Start(config, out, **options), dry_run)
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        _fail(click.ClickException(one_line(error)), error)
    except KeyboardInterrupt as error:
        _fail(_Interrupted(str(error) or _left(out)), error)


def _run(start: Start, dry_run: bool) -> None:
    from . import distributed  # takes seconds to import, and Ctrl-C is one line meanwhile

    if not dry_run:
        distributed.recorded(partial(_train, start.config(), start.out))
    elif processes.rank() == 0:
        click.echo(start.report())


def _train(config: RunConfig, out: Path) -> None:
    from . import distributed
    from .trainer import Trainer

    with distributed.process_group() as device:
        level = logging.INFO if distributed.rank() == 0 else logging.WARNING
        logging.getLogger("edm2lite").setLevel(level)
        try:
            Trainer(config, out, device).train()
        except distributed.RankZeroError:  # rank 0 says why
            processes.leave(1)
        except KeyboardInterrupt as error:
            if not str(error):  # do not wait for threads that write
                _Interrupted(_left(out)).show()
                processes.leave(_Interrupted.exit_code)
            raise
        in_group = distributed.is_group()
    if in_group:  # torch's threads, ended by the interpreter instead, abort it once in a while
        processes.leave(0)


class _Interrupted(click.ClickException):
    exit_code = 130

    def show(self, file: IO[Any] | None = None) -> None:
        """Say it once, whatever the number of processes."""
        if processes.rank() == 0:
            super().show(file)


def _left(out: Path) -> str:
    """What an interrupted run has left to continue from."""
    found = finished(out / "checkpoints")
    if not found:
        return f"interrupted; there is no checkpoint in {out}: the same command starts over"
    return f"interrupted; the same command continues from the newest checkpoint, {found[-1]}"


def _fail(failure: click.ClickException, cause: BaseException) -> NoReturn:
    if "RANK" in os.environ:  # started by torchrun, other ranks may wait for this one
        failure.show()
        processes.leave(failure.exit_code)
    raise failure from cause


if __name__ == "__main__":
    main(prog_name="python -m edm2lite.training")
