"""What a run tells the person who waits for it: at its start, with every tick, at its end.

On a terminal a bar moves; where the lines are read from a file, there is one for each tick. All of
them go to ``RUN/log.txt`` too, with the warnings between them.
"""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from edm2lite.messages import one_line
from edm2lite.units import format_amount, format_duration
from edm2lite.version import __version__

from .overview import next_commands, overview
from .sink import Sink

if TYPE_CHECKING:
    from .trainer import Trainer

logger = logging.getLogger(__name__)

LOG = "log.txt"
"""Name of the file with the lines of a run."""

NEGATIVE_LOSS = (
    "a loss below 0 is as it should be: u(sigma), the logarithm of the expected error, is part of"
    " it; lower is better"
)
"""What is said when the loss is negative for the first time."""


@dataclass(kw_only=True)
class Console(Sink):
    """Says on stderr what a run is, how it goes, and what to do when it has ended."""

    def start(self, trainer: Trainer) -> None:
        """Say what is trained, and show the bar where the run continues."""
        self._trainer, self._total = trainer, trainer.config.total_nimg
        self._log = LogFile(trainer.run_dir / LOG)
        self._is_explained, self._bar = False, None
        logging.getLogger("edm2lite").addHandler(self._log)
        self._log.line(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}, edm2lite {__version__}")
        for line in overview(trainer):
            self._say(line)
        if trainer.nimg < self._total and _shows_a_bar():
            self._bar = tqdm(
                total=self._total, initial=trainer.nimg, unit="img", unit_scale=True,
                desc="train", dynamic_ncols=True, mininterval=0.5 if sys.stderr.isatty() else 10,
            )  # fmt: skip

    def advance(self, nimg: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(nimg - self._bar.n)

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Say how the run goes, or show the loss beside the bar."""
        if "loss" not in line:
            return  # reported between two ticks
        loss, text = line["loss"], self._status(line)
        if self._bar is None:
            self._say(text)
        else:
            self._log.line(text)
            if loss is not None:
                self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if loss is not None and loss < 0 and not self._is_explained:
            self._is_explained = True
            self._say(NEGATIVE_LOSS)

    def close(self, *, failed: bool) -> None:
        """Leave the bar as it is, and say what can be done with a run that has ended."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        trainer = self._trainer
        try:
            if failed:
                with contextlib.suppress(OSError):  # of a full disk, which what failed says already
                    self._log.line(f"ended at nimg = {trainer.nimg}: {_failure()}")
            elif trainer.nimg >= self._total:
                self._say("next:")
                for command in next_commands(trainer):
                    self._say(f"  {command}")
            else:
                self._log.line(f"stopped for {trainer.stopped_by} at nimg = {trainer.nimg}")
        finally:
            logging.getLogger("edm2lite").removeHandler(self._log)

    def _status(self, line: Mapping[str, Any]) -> str:
        nimg, batch_size = line["nimg"], self._trainer.config.batch_size
        loss = "not finite" if line["loss"] is None else f"{line['loss']:.4f}"
        speed = line["img_per_sec"]
        left = max(self._total - nimg, 0)
        time_left = format_duration(left / speed) if speed else "an unknown time"  # below 0.005
        return (
            f"step {-(-nimg // batch_size)} of {-(-self._total // batch_size)},"
            f" {format_amount(nimg)} images, loss {loss}, lr {line['lr']:.3g},"
            f" {format_amount(speed)} img/s, {time_left} left"
        )

    def _say(self, line: str) -> None:
        """To the file in any case, to stderr if somebody listens."""
        if not logger.isEnabledFor(logging.INFO):
            self._log.line(line)
            return
        shown = self._bar is not None
        with tqdm.external_write_mode(file=sys.stderr) if shown else contextlib.nullcontext():
            logger.info("%s", line)


class LogFile(logging.Handler):
    """Appends what is logged to a file; it is in the file when that returns.

    Args:
        path: The file.
    """

    def __init__(self, path: Path):
        super().__init__(logging.INFO)
        self._path = path

    def line(self, text: str) -> None:
        """Write a line."""
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(text + "\n")

    def emit(self, record: logging.LogRecord) -> None:
        """Write what was logged."""
        self.line(record.getMessage().replace("\n", " "))


def _shows_a_bar() -> bool:
    """Whether a person looks, at a terminal or, as in a notebook, without taking the lines."""
    return sys.stderr.isatty() or not logger.isEnabledFor(logging.INFO)


def _failure() -> str:
    error = sys.exc_info()[1]
    return "interrupted" if error is None else one_line(error) or type(error).__name__
