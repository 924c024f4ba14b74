"""The training command: ``python -m edm2lite.training CONFIG --out RUN``, or under torchrun."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import NoReturn

import click

from edm2lite import processes
from edm2lite.messages import one_line
from edm2lite.version import __version__

from . import distributed
from .config import RunConfig, load_config, shipped


@click.command(epilog=f"Shipped configurations: {', '.join(shipped())}.")
@click.argument("config")
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
@click.version_option(__version__)
def main(config: str, out: Path, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train the network of CONFIG, a YAML file or the name of a shipped configuration.

    The same command line starts a run, continues it after an interruption, and extends it. SIGTERM
    and SIGUSR1 end the run after the current step with a checkpoint and exit code 0.

    \b
    Examples:
      python -m edm2lite.training digits --out runs/digits
      torchrun --standalone --nproc_per_node=8 -m edm2lite.training my.yaml --out runs/a
    """
    logging.basicConfig(format="%(message)s")
    try:
        run_config = load_config(config, overrides)
        if dry_run:
            from .dry_run import report

            text = report(run_config, out, processes.world_size())
            if processes.rank() == 0:
                click.echo(text)
        else:
            distributed.recorded(partial(_train, run_config, out))
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        _fail(click.ClickException(one_line(error)), error)
    except KeyboardInterrupt as error:
        text = "interrupted; the same command continues from the newest checkpoint"
        _fail(_Interrupted(text), error)


def _train(config: RunConfig, out: Path) -> None:
    from .trainer import Trainer

    with distributed.process_group() as device:
        level = logging.INFO if distributed.rank() == 0 else logging.WARNING
        logging.getLogger("edm2lite").setLevel(level)
        Trainer(config, out, device).train()
        in_group = distributed.is_group()
    if in_group:  # torch's threads, ended by the interpreter instead, abort it once in a while
        distributed.leave(0)


class _Interrupted(click.ClickException):
    exit_code = 130


def _fail(failure: click.ClickException, cause: BaseException) -> NoReturn:
    if distributed.is_group():
        failure.show()
        distributed.leave(failure.exit_code)
    raise failure from cause


if __name__ == "__main__":
    main(prog_name="python -m edm2lite.training")
