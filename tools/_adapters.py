"""The option by which commands are given adapters and their strengths."""

from __future__ import annotations

from collections.abc import Callable

import click


def adapters_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--adapter``: adapters and their strengths, one at least."""
    return click.option(
        "--adapter",
        "adapters",
        multiple=True,
        required=True,
        metavar="FILE[:STRENGTH]",
        help="Adapter and its strength, e.g. cat.safetensors:0.7; repeatable, several add up.",
    )(command)
