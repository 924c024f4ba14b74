"""What decides the bits of a run on a CPU besides its configuration: recorded, and restored.

How a sum is split among threads decides its last bits, and so do the instructions of the processor
and the version of torch. A checkpoint holds all three in ``machine.json``. A run that continues
takes the number of threads from there; where another processor or version would change the bits, it
says so. On a GPU nothing of this matters.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch

from edm2lite.strict_json import parse_object

NAME = "machine.json"
logger = logging.getLogger(__name__)


def describe() -> dict[str, Any]:
    """Number of threads, instructions of the processor, and version of torch.

    Example:
        >>> sorted(describe())
        ['instructions', 'threads', 'torch']
    """
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
    }


def record(folder: Path, here: dict[str, Any]) -> None:
    """Write ``machine.json``, what :func:`describe` said, into the folder of a checkpoint."""
    (folder / NAME).write_text(json.dumps(here), encoding="utf-8")


def resume(checkpoint: Path | None, threads: int | None, device: torch.device) -> None:
    """Compute as the run did that wrote a checkpoint, as far as possible, and say what differs.

    Args:
        checkpoint: Folder of the checkpoint; one of an earlier version says nothing.
        threads: Number of threads that the configuration asks for, or None.
        device: Device of the network.
    """
    if device.type != "cpu" or checkpoint is None or not (checkpoint / NAME).is_file():
        return
    before, here = parse_object((checkpoint / NAME).read_bytes()), describe()
    if threads is None and before["threads"] != here["threads"]:
        torch.set_num_threads(before["threads"])
        logger.info(
            "computing with %d threads, as this run did before (here torch would take %d; --set"
            " threads=N changes it, and the last bits of all that follows)",
            before["threads"], here["threads"],
        )  # fmt: skip
        here = describe()
    other = [
        f"{key} {before[key]}, now {here[key]}" for key in here if before.get(key) != here[key]
    ]
    if other:
        logger.warning(
            "the last bits of this run will not be those of an uninterrupted one: %s was written"
            " with %s", checkpoint, "; ".join(other)
        )  # fmt: skip
