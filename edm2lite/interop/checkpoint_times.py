"""The moment of a checkpoint: from what the training program recorded, or from its name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edm2lite.ema.clocks import checked_clock
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import MODEL_FORMAT
from edm2lite.tensorheader import read_header

TIME_PATTERN = r"(?:checkpoint|ckpt|global_step|step|iter(?:ation)?)[-_.]?(\d+)|^(\d+)$"
"""How a name gives the number of steps, unless another pattern is stated."""


@dataclass(frozen=True)
class TimeRule:
    """How the time of a checkpoint is found.

    Attributes:
        clock: Unit of the times: ``steps``, ``tokens`` or ``images``.
        pattern: Regular expression whose group is the number in the name of a checkpoint. It takes
            precedence over what the checkpoint records. [default: the record, or TIME_PATTERN]
        per_step: Images or tokens of a step, or a factor on the number in the name. [default: 1
            where steps are counted, or a pattern is given]

    Raises:
        ValueError: If the clock is unknown, the pattern is none or has no group, or ``per_step`` is
            not positive.

    Example:
        >>> TimeRule("tokens", per_step=4096).time_of(Path("run/checkpoint-500"))
        2048000
        >>> TimeRule("tokens", pattern=r"(\\d+)M", per_step=10**6).time_of(Path("run/b-40M.pt"))
        40000000
    """

    clock: str = "steps"
    pattern: str | None = None
    per_step: int | None = None

    def __post_init__(self) -> None:
        checked_clock(self.clock)
        if self.per_step is not None and self.per_step < 1:
            raise ValueError(f"per_step must be at least 1, got {self.per_step}")
        try:
            groups = re.compile(self.pattern or TIME_PATTERN).groups
        except re.error as error:
            raise ValueError(
                f"pattern {self.pattern!r} must be a regular expression: {error}"
            ) from error
        if not groups:
            raise ValueError(
                f"pattern {self.pattern!r} must have a group around the number, as in"
                r" checkpoint-(\d+)"
            )

    def time_of(self, path: Path) -> int | None:
        """Time of a checkpoint in units of the clock; None if neither record nor name has it.

        Args:
            path: File or folder of the checkpoint.

        Raises:
            ValueError: If the checkpoint is an average, its record cannot be read, or its steps
                have no length in units of the clock.
        """
        if self.pattern is None:
            if (nimg := _recorded_nimg(path, self.clock)) is not None:
                return nimg
            state = _trainer_state(path)
            tokens, step = _count(state, "num_input_tokens_seen"), _count(state, "global_step")
            if self.clock == "tokens" and self.per_step is None and tokens:
                return tokens
            if step is not None:
                return step * self._scale(path)
        number = self._number(path)
        return None if number is None else number * self._scale(path)

    @property
    def stride(self) -> int:
        """Units of the clock in one step, as far as they are known."""
        return self.per_step or 1

    def _number(self, path: Path) -> int | None:
        name = path.name if path.is_dir() else path.name.removesuffix(path.suffix)
        match = re.search(self.pattern or TIME_PATTERN, name)
        text = next((g for g in match.groups() if g is not None), None) if match else None
        if text is None:
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > 18:
            raise ValueError(
                f"the group of the pattern must match a whole number in {path.name}, it matches"
                f" {text!r}"
            )
        return int(text)

    def _scale(self, path: Path) -> int:
        if self.per_step is None and self.pattern is None and self.clock != "steps":
            raise ValueError(
                f"{path.name} is timed in steps, and a clock of {self.clock} needs to know how many"
                f" {self.clock} a step has; give --per-step (per_step)"
            )
        return self.per_step or 1


def _recorded_nimg(path: Path, clock: str) -> int | None:
    """Count in the metadata of one of our model files; None for other checkpoints.

    Raises:
        ValueError: If it is of another clock, or the file holds an average.
    """
    if not path.is_file() or path.suffix != ".safetensors":
        return None
    metadata = read_header(path).metadata
    if metadata.get("format") != MODEL_FORMAT:
        return None
    if metadata.get("average", "none") != "none" or "inputs" in metadata or "profile" in metadata:
        raise ValueError(
            f"{path} must hold the weights of one moment, and holds an average; move it elsewhere"
        )
    own = metadata.get("clock", "images")
    if "nimg" in metadata and own != clock:
        raise ValueError(f"{path} is timed in {own}, got a clock of {clock}; give --clock {own}")
    nimg = metadata.get("nimg", "")
    return int(nimg) if nimg.isascii() and nimg.isdigit() else None


def _trainer_state(path: Path) -> dict[str, object]:
    """What Hugging Face's Trainer records beside the weights; {} if there is no such file."""
    file = path / "trainer_state.json"
    if not path.is_dir() or not file.is_file():
        return {}
    try:
        return parse_object(file.read_bytes(), finite=False)
    except ValueError as error:
        raise ValueError(f"{file} must be a JSON object, but {error}; restore it") from error


def _count(state: dict[str, object], name: str) -> int | None:
    value = state.get(name)
    return value if isinstance(value, int) and 0 <= value < 2**62 else None
