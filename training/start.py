"""What a training begins with, from the words on the command line."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from edm2lite import processes

if TYPE_CHECKING:
    from .config import RunConfig


class Start(NamedTuple):
    """What a person asked for; nothing heavy is imported before :meth:`config`.

    Attributes:
        name: Name or file of a configuration, or None.
        out: Folder of the run.
        data: Pictures of one's own, or None.
        resolution: Side in pixels that they get, or None.
        init: Model to fine-tune, or None.
        branch: Run and point at which to branch off, ``RUN@nimg``, or None.
        overrides: Changes ``a.b=c``.
    """

    name: str | None
    out: Path
    data: str | None = None
    resolution: int | None = None
    init: str | None = None
    branch: str | None = None
    overrides: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise click.UsageError if options do not go together."""
        if self.data is None and self.resolution is not None:
            raise click.UsageError("--resolution goes with --data, whose pictures get that size")
        others = [
            option
            for option, value in (
                ("--data", self.data),
                ("--init", self.init),
                ("CONFIG", self.name),
            )
            if value is not None
        ]
        if self.branch is not None and others:
            raise click.UsageError(
                "--fork takes the configuration of its run, changed by --set; leave out"
                f" {others[0]}"
            )
        if self.branch is None and not others and not (self.out / "config.yaml").is_file():
            raise click.UsageError(
                "give pictures, as in --data PHOTOS, or a CONFIG: a YAML file or the name of a"
                " shipped configuration"
            )
        if self.init is not None and self.data is None and self.name is None:
            raise click.UsageError("--init needs pictures to train on: give --data, or a CONFIG")

    def config(self) -> RunConfig:
        """The configuration; pictures are converted and checkpoints copied where they have to be.

        Raises:
            click.UsageError: If options do not go together.
            FileNotFoundError: If something does not exist.
            ValueError: If it cannot be used.
        """
        self.check()
        from .config import load_config

        if self.data is not None:
            return self._on_pictures(self.out, _say)
        if self.branch is not None:
            from . import forking

            return forking.fork(self.branch, self.out, self.overrides, say=_say)
        changes = [
            *self.overrides,
            *([] if self.init is None else [f"init={json.dumps(self.init)}"]),
        ]
        return load_config(self.name or str(self.out), changes)

    def report(self) -> str:
        """The configuration and its cost; nothing is written but to a temporary folder."""
        from .dry_run import report

        if self.branch is not None and not (self.out / "run.json").is_file():
            from . import forking

            branch = forking.find_branch(self.branch)
            config = forking.forked_config(branch, self.out, self.overrides)
            return report(config, self.out, processes.world_size())
        if self.data is None or (self.out / "config.yaml").is_file():
            return report(self.config(), self.out, processes.world_size())
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            config = self._on_pictures(
                out, lambda line: _say(line.replace(str(out), str(self.out)))
            )
            text = report(config, out, processes.world_size())
        return text.replace(str(out), str(self.out))

    def _on_pictures(self, out: Path, say: Callable[[str], None]) -> RunConfig:
        from .own_run import own_run

        assert self.data is not None
        return own_run(
            self.data, out, preset=self.name, resolution=self.resolution, init=self.init,
            overrides=self.overrides, say=say,
        )  # fmt: skip


def _say(line: str) -> None:
    if processes.rank() == 0:
        click.echo(line, err=True)
