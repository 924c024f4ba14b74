"""The folder of a run: whether it may be used, and what is written into it first."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from edm2lite.atomic import replacing
from edm2lite.strict_json import parse_object

from . import distributed
from .config import RunConfig, load_config
from .fields import differing


def check_world(config: RunConfig, world_size: int) -> None:
    """Raise ValueError unless the batch can be divided among the processes."""
    if config.batch_size % world_size:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, got {config.batch_size} for"
            f" {world_size}"
        )


def check_run(config: RunConfig, run_dir: Path) -> None:
    """Raise ValueError if the folder belongs to another run, or to something else."""
    saved = run_dir / "config.yaml"
    if saved.is_file():
        different = differing(load_config(str(saved)), config)
        if different:
            raise ValueError(
                f"{run_dir} belongs to a run of another configuration: {', '.join(different[:3])}"
                "; give another --out, or the configuration of that run"
            )
    elif any((run_dir / name).exists() for name in ("snapshots", "checkpoints")):
        raise ValueError(f"{run_dir} holds snapshots but no config.yaml; give another --out")


def open_run(config: RunConfig, run_dir: Path) -> str:
    """Create the folder on rank 0 and write the configuration to it.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run.

    Returns:
        Identifier of the run, which every snapshot carries.
    """
    run = ""
    if distributed.rank() == 0:
        identity = run_dir / "run.json"
        if not identity.is_file():
            with replacing(identity) as file:
                json.dump({"run": secrets.token_hex(4)}, file)
        run = _identifier(identity)
        with replacing(run_dir / "config.yaml") as file:
            file.write(config.to_yaml())
    return distributed.from_rank_zero(run)


def _identifier(path: Path) -> str:
    try:
        return str(parse_object(path.read_bytes())["run"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f"{path} must hold the identifier of the run, as its snapshots have it, and does not"
            f" ({error}); restore it from a copy"
        ) from error
