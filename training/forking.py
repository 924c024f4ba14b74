"""A run that branches off another one: the same past, and another future.

What is carried over: the weights, Adam's moments, the tracked averages with their clock, and the
statistics of the loss, all from a checkpoint, and the snapshots until then. So averages reach back
over the fork as over any other moment, and the learning rate goes on by the images seen. What is
not: lines of ``stats.jsonl``, grids, and the identifier, since it is another run now.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from edm2lite import processes
from edm2lite.atomic import replacing, replacing_folder, sync
from edm2lite.claim import claim_file
from edm2lite.ema import list_snapshots
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import load_tensors, save_tensors
from edm2lite.units import parse_count

from .config import RunConfig, load_config
from .fields import differing
from .manifest import finished
from .prior_images import FILE as PRIOR

_SAME = ("net.", "ema.sigma_rels", "init", "tune", "weighting", "encoder", "text")
"""Fields that decide what a checkpoint holds, and in which units."""


class Branch(NamedTuple):
    """Where a run branches off.

    Attributes:
        run: Folder of the run that it leaves.
        nimg: Images seen until then.
        checkpoint: The checkpoint.
    """

    run: Path
    nimg: int
    checkpoint: Path


def find_branch(text: str) -> Branch:
    """The point that ``RUN@nimg`` names.

    Args:
        text: Name of the run, and images seen, as in ``runs/a@64Ki``; without them, the newest
            checkpoint.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If it has no checkpoint at that point.

    Example:
        >>> find_branch("runs/none@64000")
        Traceback (most recent call last):
        FileNotFoundError: --fork needs a run, there is no runs/none/config.yaml
    """
    name, _, at = text.rpartition("@") if "@" in text else (text, "", "")
    run = Path(name)
    if not (run / "config.yaml").is_file():
        raise FileNotFoundError(f"--fork needs a run, there is no {run / 'config.yaml'}")
    found = {int(path.name): path for path in finished(run / "checkpoints")}
    if not found:
        raise ValueError(f"--fork needs a checkpoint, {run} has none; start it, or use --init")
    if not at:
        nimg = max(found)
        return Branch(run, nimg, found[nimg])
    count = parse_count(at.removeprefix("nimg="))
    if not isinstance(count, int):
        raise ValueError(f"--fork takes RUN@nimg, as in {run}@{max(found)}, got {text!r}")
    if count not in found:
        near = min(found, key=lambda nimg: abs(nimg - count))
        raise ValueError(
            f"{run} must have a checkpoint of {count} images to branch off there, the nearest is of"
            f" {near}: --fork {run}@{near} (keep_checkpoints says how many stay); weights alone, as"
            f" an average, are had at any time by --init {run}@sigma_rel=0.05,nimg={count}"
        )
    return Branch(run, count, found[count])


def forked_config(branch: Branch, out: Path, overrides: Iterable[str]) -> RunConfig:
    """The configuration of the new run.

    Args:
        branch: Where it branches off.
        out: Folder of the new run.
        overrides: Changes ``a.b=c``.

    Raises:
        ValueError: If the checkpoint does not fit the configuration, or nothing is left to train.
    """
    before, config = load_config(str(branch.run)), load_config(str(branch.run), overrides)
    if out.resolve() == branch.run.resolve():
        raise ValueError(f"--out must be another folder than {branch.run}, which goes on as it is")
    for text in differing(before, config):
        if text.startswith(_SAME):
            raise ValueError(
                f"a fork must have the network, weighting and encoders of its run and its averages,"
                f" they differ in {text}"
            )
    if (before.prior is None) != (config.prior is None):
        raise ValueError(
            "a fork must have a prior if its run has one, and none if not: it decides whether"
            " u(sigma) is trained"
        )
    if branch.nimg % config.batch_size:
        raise ValueError(
            f"batch_size must divide the {branch.nimg} images seen at the fork, got"
            f" {config.batch_size}"
        )
    if config.total_nimg <= branch.nimg:
        raise ValueError(
            f"total_nimg must be more than the {branch.nimg} images seen at the fork, got"
            f" {config.total_nimg}; add --set total_nimg=NUMBER"
        )
    return config


def fork(
    text: str,
    out: Path,
    overrides: Iterable[str] = (),
    say: Callable[[str], None] = lambda line: None,
) -> RunConfig:
    """Make a run that branches off another one, ready to be continued; or find that it was made.

    Args:
        text: Where it branches off, as :func:`find_branch` takes it.
        out: Folder of the new run.
        overrides: Changes ``a.b=c`` of its configuration.
        say: Function that is told what was done.

    Returns:
        The configuration of the new run.

    Raises:
        FileNotFoundError: If there is no such run.
        ValueError: If it has no checkpoint there, the configuration does not fit it, or ``out`` is
            something else.
    """
    changes = list(overrides)

    def begin() -> None:
        if (out / "run.json").is_file():
            _check_same(out, text)
            say(f"{out} goes on, forked from {text} before")
            return
        branch = find_branch(text)
        config = forked_config(branch, out, changes)
        if out.exists() and any(out.iterdir()):
            raise ValueError(
                f"a fork must go to a new folder, {out} exists and is not one of a run"
            )
        _make(branch, out, config)
        say(
            f"{out} branches off {branch.run} at {branch.nimg:,} images: weights, optimizer,"
            " averages and snapshots until then are carried over"
        )

    processes.after_first(f"fork {out}", begin)
    return load_config(str(out), changes)


def _make(branch: Branch, out: Path, config: RunConfig) -> None:
    """Write the folder of the new run, which appears whole."""
    run = secrets.token_hex(4)
    of = parse_object((branch.run / "run.json").read_bytes())
    with claim_file(out):
        if out.exists():
            out.rmdir()
        with replacing_folder(out) as folder:
            for info in list_snapshots(branch.run):
                if info.nimg <= branch.nimg and not info.is_raw:
                    tensors, metadata = load_tensors(info.path)
                    target = folder / "snapshots" / info.path.name
                    save_tensors(target, tensors, {**metadata, "run": run})
            copied = folder / "checkpoints" / branch.checkpoint.name
            shutil.copytree(branch.checkpoint, copied, copy_function=_copy)
            sync(copied)
            sync(copied.parent)
            images = branch.run / PRIOR
            if images.is_file() and load_config(str(branch.run)).prior == config.prior:
                _copy(images, folder / PRIOR)
            with replacing(folder / "config.yaml") as file:
                file.write(config.to_yaml())
            origin = {"run": of["run"], "nimg": branch.nimg, "folder": str(branch.run)}
            kept = {key: value for key, value in of.items() if key == "base"}
            with replacing(folder / "run.json") as file:
                json.dump({"run": run, **kept, "fork": origin}, file)


def _copy(source: Path | str, target: Path | str) -> None:
    """Copy a file; it is on disk when this returns."""
    shutil.copy2(source, target)
    sync(Path(target))


def _check_same(out: Path, text: str) -> None:
    """See that a run which exists is the fork that a person names."""
    origin = parse_object((out / "run.json").read_bytes()).get("fork")
    if origin is None:
        raise ValueError(f"{out} is a run that was not forked; give another --out")
    name, _, at = text.rpartition("@") if "@" in text else (text, "", "")
    count = parse_count(at.removeprefix("nimg=")) if at else origin["nimg"]
    source = Path(name) / "run.json"
    known = parse_object(source.read_bytes()).get("run") if source.is_file() else origin["run"]
    if (known, count) != (origin["run"], origin["nimg"]):
        raise ValueError(
            f"{out} was forked from {origin['folder']}@{origin['nimg']}, not from {text}; give"
            " another --out"
        )
