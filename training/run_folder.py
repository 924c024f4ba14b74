"""The folder of a run: whether it may be used, and what is written into it first."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from edm2lite.atomic import replacing
from edm2lite.claim import Claim, claim_folder
from edm2lite.config_file.comments import commented
from edm2lite.strict_json import parse_object

from . import distributed
from .config import RunConfig, load_config
from .fields import differing

_TITLE = """The configuration of this run. The command line that began the run continues it, also
with other values of the keys that may change in a run."""
_ADVICE = "wait for it to end, or stop it: the same command then continues the run"


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


class RunFolder:
    """The folder of a run, to which one training at a time writes.

    Every rank has one of these and calls its methods; that of rank 0 acts.

    Args:
        config: Configuration of the run.
        run_dir: Folder of the run, which need not exist.
        base: Identity of the model that is fine-tuned, or None.
    """

    def __init__(self, config: RunConfig, run_dir: Path, base: str | None = None):
        self.config, self.run_dir, self._base = config, run_dir, base
        self._claim: Claim | None = None

    def open(self) -> str:
        """Claim the folder by the file ``.lock`` in it, and write the configuration to it.

        Others are refused until :meth:`release`, or until this process ends.

        Returns:
            Identifier of the run, which every snapshot carries.

        Raises:
            ValueError: If another process writes to the folder, it belongs to another run, or its
                ``run.json`` is damaged.
            OSError: If a file cannot be written.
            RankZeroError: On the other ranks, if rank 0 failed.
        """
        return distributed.on_rank_zero(self._open)

    def _open(self) -> str:
        self._claim = claim_folder(self.run_dir, _ADVICE)
        check_run(self.config, self.run_dir)  # again: another process may have written until now
        run = _identifier(self.run_dir / "run.json", self._base)
        with replacing(self.run_dir / "config.yaml") as file:
            file.write(commented(self.config, _TITLE))
        return run

    def check(self) -> None:
        """Raise ValueError if another process took the folder over, so that nothing is written."""
        if self._claim is not None:
            self._claim.check()

    def release(self) -> None:
        """Let other processes write to the folder."""
        if self._claim is not None:
            claim, self._claim = self._claim, None
            claim.release()


def check_base(run_dir: Path, base: str, name: str) -> None:
    """Raise ValueError if the run has begun with another model than it would be continued with.

    Args:
        run_dir: Folder of the run, which need not exist.
        base: Identity of the model.
        name: Name of the model.
    """
    path = run_dir / "run.json"
    begun = parse_object(path.read_bytes()).get("base") if path.is_file() else None
    if begun not in (None, base):
        raise ValueError(
            f"{name} must be the model that {run_dir} began with ({begun}), it is another one now"
            f" ({base}); restore it, or give another --out"
        )


def _identifier(path: Path, base: str | None) -> str:
    """The identifier in a ``run.json``, which is written if it is missing."""
    if not path.exists():
        with replacing(path) as file:
            json.dump({"run": secrets.token_hex(4), **({"base": base} if base else {})}, file)
    try:
        return str(parse_object(path.read_bytes())["run"])
    except (ValueError, KeyError) as error:
        raise ValueError(
            f'{path} must hold the identifier of the run, as in {{"run": "a1b2c3d4"}}, and is'
            " damaged; restore it, or write it anew with the identifier in the metadata of the"
            " snapshots (the key run)"
        ) from error
