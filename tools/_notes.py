"""What a command says on stderr about the models it was given, before it works on them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from edm2lite import processes
from edm2lite.extras import require

if TYPE_CHECKING:
    from edm2lite.sampling.images import ImageGenerator


def note_raw_weights(*names: str | None) -> None:
    """Say which of the names are of runs, and so mean raw weights and not an average."""
    for name in dict.fromkeys(names):
        if name is not None and (Path(name) / "last.safetensors").is_file():
            _say(f"{name}: raw last weights; averages: {name}@sigma_rel=0.10{_stored(Path(name))}")


def note_sampling(generators: Iterable[ImageGenerator]) -> None:
    """Say what is unusual about how models are going to be sampled, each thing once."""
    from edm2lite.sampling.compatibility import notes

    generators = list(generators)
    found = [note for g in generators for note in notes(g.model, g.guide, g.sampling)]
    found += [
        f"{g.model.name}: it is told text, and has no prompts here; give some by --prompt"
        for g in generators
        if g.prompts is not None and not any(g.prompts)
    ]
    for note in dict.fromkeys(found):
        _say(note)


def can_draw(option: str) -> bool:
    """Whether there is matplotlib for the picture that an option names; a note if there is not.

    Raises:
        ImportError: If there is not, and the picture was asked for.
    """
    try:
        require("matplotlib")
    except ImportError as error:
        source = click.get_current_context().get_parameter_source(option)
        if source is not ParameterSource.DEFAULT:
            raise
        _say(f"no picture: {error}")
        return False
    return True


def _stored(run: Path) -> str:
    from edm2lite.ema import list_snapshots

    try:
        infos = list_snapshots(run)
    except (FileNotFoundError, ValueError):  # an average would report the damage
        return ""
    lengths = " and ".join(f"{x:g}" for x in sorted({info.sigma_rel for info in infos}))
    return f"; the run holds snapshots of {lengths} up to nimg={infos[-1].nimg}"


def _say(note: str) -> None:
    if processes.rank() == 0:
        click.echo(note, err=True)
