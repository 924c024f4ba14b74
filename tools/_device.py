"""The option ``--device`` of the commands that compute."""

from __future__ import annotations

import click

from edm2lite import processes


def _choose_device(ctx: click.Context, param: click.Parameter, name: str | None) -> None:
    try:
        processes.choose_device(name)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


device_option = click.option(
    "--device",
    metavar="cpu|cuda|cuda:N",
    expose_value=False,
    callback=_choose_device,
    help="Where to compute. [default: a GPU for each process if there are any, else the CPU]",
)
"""Adds ``--device`` to a command; :func:`edm2lite.processes.device` follows it."""
