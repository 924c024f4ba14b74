"""The training command: ``python -m edm2lite.training CONFIG --out RUN``, or under torchrun."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from . import distributed
from .config import load_config, shipped


@click.command(epilog=f"Shipped configurations: {', '.join(shipped())}.")
@click.argument("config")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder of the run; continued if it is there.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value, e.g. --set optim.ref_lr=0.005; may be repeated.",
)
def main(config: str, out: Path, overrides: tuple[str, ...]) -> None:
    """Train CONFIG, a YAML file or the name of a shipped one.

    The same command line starts a run and continues it after an interruption.

    \b
    Examples:
      python -m edm2lite.training digits --out runs/digits
      torchrun --standalone --nproc_per_node=8 -m edm2lite.training my.yaml --out runs/a
    """
    from .trainer import Trainer

    logging.basicConfig(format="%(message)s")
    try:
        run_config = load_config(config, overrides)
        with distributed.process_group() as device:
            level = logging.INFO if distributed.rank() == 0 else logging.WARNING
            logging.getLogger("edm2lite").setLevel(level)
            Trainer(run_config, out, device).train()
    except (ValueError, ImportError, FloatingPointError, OSError) as error:
        raise click.ClickException(" ".join(str(error).split())) from error
    except KeyboardInterrupt:
        raise click.ClickException(
            "interrupted; the same command continues from the newest checkpoint"
        ) from None


if __name__ == "__main__":
    main(prog_name="python -m edm2lite.training")
