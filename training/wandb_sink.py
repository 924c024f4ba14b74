"""Weights & Biases as a sink: the numbers of ``stats.jsonl`` and the pictures, over images seen."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from edm2lite.atomic import replacing
from edm2lite.strict_json import parse_object

from .sink import Sink, flat

if TYPE_CHECKING:
    from .trainer import Trainer


@dataclass(kw_only=True)
class WandB(Sink):
    """Logs to one W&B run for each run folder, which is continued when the run is.

    The identifier of the W&B run is in ``RUN/wandb.json``, its local files are in ``RUN/wandb``.
    The x-axis of every curve is ``nimg``. What an interrupted run computes again is logged again,
    with the same values.

    Attributes:
        project: Name of the W&B project.
        name: Name of the W&B run. [default: that of the run folder]
        mode: ``online``, ``offline`` (to be uploaded by ``wandb sync --append
            RUN/wandb/offline-*``) or ``disabled``.
    """

    kind: Literal["wandb"] = "wandb"
    project: str = "edm2lite"
    name: str | None = None
    mode: Literal["online", "offline", "disabled"] = "online"

    def check(self) -> None:
        """Raise ImportError, saying what to install, unless wandb is installed."""
        _package()

    def start(self, trainer: Trainer) -> None:
        """Begin the W&B run of this folder, or continue it."""
        self._run = _package().init(
            project=self.project,
            name=self.name or trainer.run_dir.resolve().name,
            id=_identifier(trainer.run_dir / "wandb.json"),
            dir=str(trainer.run_dir),
            config=yaml.safe_load(trainer.config.to_yaml()),
            allow_val_change=True,
            mode=self.mode,
            resume="allow" if self.mode == "online" else None,
        )
        self._run.define_metric("nimg")
        self._run.define_metric("*", step_metric="nimg")

    def scalars(self, line: Mapping[str, Any]) -> None:
        """Log every number of a line; a list becomes one curve per noise level."""
        self._run.log({"nimg": line["nimg"], **dict(flat(line))})

    def picture(self, name: str, picture: NDArray[np.uint8], nimg: int) -> None:
        """Log a picture [H, W, C] uint8."""
        pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
        self._run.log({"nimg": nimg, name: _package().Image(pixels)})

    def close(self, *, failed: bool) -> None:
        """End the W&B run, as failed or finished."""
        self._run.finish(exit_code=int(failed))


def _identifier(path: Path) -> str:
    """The identifier of the W&B run, chosen at its first start."""
    if not path.is_file():
        with replacing(path) as file:
            json.dump({"id": secrets.token_hex(4)}, file)
    try:
        return str(parse_object(path.read_bytes())["id"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} must hold the id of the W&B run, and does not ({error}); remove it to begin"
            " another one"
        ) from error


def _package() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError("wandb needs Weights & Biases; pip install 'edm2lite[wandb]'") from error
    return wandb
