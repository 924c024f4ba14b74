"""Makes a run of a folder of ordinary checkpoints, from which averages are rebuilt.

Note [why nothing is copied]
    Sixteen checkpoints of a model of 7e9 parameters are 220 GB. Where the weights are in
    safetensors files, a snapshot of the run refers to them (:mod:`edm2lite.ema.references`). It is
    as safe as a copy: every byte is read once at the import, and its digest recorded and checked
    whenever an average is made. It is less durable: if the files go, the snapshot goes. With
    ``copy`` the run stands alone. Files of torch.save and torch.distributed.checkpoint are always
    converted, a part of a tensor at a time.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import xxhash

from edm2lite.claim import claim_folder
from edm2lite.ema.folder import list_snapshots, scan_snapshots
from edm2lite.ema.references import save_reference
from edm2lite.ema.snapshot import EXTRA_KEYS, RAW_FORMAT, SnapshotInfo, read_info
from edm2lite.interop.checkpoint_files import Checkpoint, is_checkpoint, open_checkpoint
from edm2lite.interop.checkpoint_times import TimeRule
from edm2lite.interop.raw_checks import check_alike, check_finite
from edm2lite.tensorfile import TensorWriter, as_bytes
from edm2lite.tensorheader import TensorSpec

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], object]
"""Called with the bytes read so far and the bytes to read in total."""

_DTYPES = {"F64": "float32", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class _Timed:
    nimg: int
    checkpoint: Checkpoint


def import_checkpoints(
    folder: str | Path,
    out: str | Path,
    rule: TimeRule | None = None,
    *,
    part: str | None = None,
    copy: bool = False,
    progress: Progress | None = None,
) -> list[SnapshotInfo]:
    """Make the checkpoints in a folder snapshots of a run, all of them or, on an error, none.

    Checkpoints are the files and folders directly in ``folder`` that look like one and have a time
    by ``rule``; others are passed over, and logged. ``out`` may be a run with averages of the same
    training: raw weights and averages are then combined.

    Args:
        folder: Folder of the checkpoints.
        out: Folder of the run; snapshots are written to ``out/snapshots``.
        rule: How the time of each is found. [default: in steps, as recorded or named]
        part: Part of each checkpoint that holds the weights, such as ``model``. [default: found]
        copy: Whether to copy weights that could be read where they lie.
        progress: Called with the bytes read and the total.

    Returns:
        The snapshots of the checkpoints, by time.

    Raises:
        FileNotFoundError: If the folder holds no checkpoint that has a time.
        ValueError: If a checkpoint is incomplete, damaged, quantized, not finite or of another
            architecture, two have the same time, or ``out`` holds something else at that time.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import Window, reconstruct
        >>> folder = Path(tempfile.mkdtemp())
        >>> weights = torch.randn(50)
        >>> for step in (100, 200, 300):
        ...     weights = weights + 0.1 * torch.randn(50)
        ...     torch.save({"w": weights}, folder / f"step_{step}.pt")
        >>> [info.nimg for info in import_checkpoints(folder, folder / "run")]
        [100, 200, 300]
        >>> mean = reconstruct(folder / "run", profiles=Window(200, 300), max_error=0.2)
        >>> mean.coefficients.shape, 0 < mean.predicted_error < 0.2
        ((3,), True)
    """
    rule = rule or TimeRule()
    found = _find(Path(folder), rule, part)
    target = Path(out) / "snapshots"
    present = list_snapshots(target) if _has_snapshots(target) else []
    order = list(present[0].header.tensors) if present else list(found[-1].checkpoint.specs)
    check_alike([timed.checkpoint for timed in found], present, rule.clock)
    metadata = _metadata(found, present, rule)
    total = sum(_size(timed.checkpoint) for timed in found)
    with claim_folder(target) as mine:
        made = _write(found, target, order, metadata, copy, _Bytes(total, progress))
        mine.check()
    return made


def _find(folder: Path, rule: TimeRule, part: str | None) -> list[_Timed]:
    """The checkpoints in a folder by time, opened."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder} of checkpoints")
    times: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (is_checkpoint(path) or _is_named(path, rule)):
            continue
        nimg = rule.time_of(path)
        if not nimg:
            what = "has no time" if nimg is None else "is from before training"
            logger.warning("passed over: %s %s", path.name, what)
            continue
        other = times.setdefault(nimg, path)
        if other != path:
            raise ValueError(
                f"checkpoints must be of different times, {other.name} and {path.name} are both of"
                f" {nimg} {rule.clock}; move one elsewhere, or state the rule of names with"
                " --time-pattern"
            )
    if not times:
        raise FileNotFoundError(
            f"{folder} must hold checkpoints that have a time, as trainer_state.json records it or"
            r" as in checkpoint-500, and holds none; state the rule of their names with"
            r" --time-pattern, such as 'model-(\d+)'"
        )
    return [_Timed(nimg, open_checkpoint(times[nimg], part)) for nimg in sorted(times)]


def _is_named(path: Path, rule: TimeRule) -> bool:
    """Whether a folder bears the name of a checkpoint, so that missing weights are an error."""
    return path.is_dir() and rule.pattern is None and path.name.startswith("checkpoint-")


def _has_snapshots(target: Path) -> bool:
    return target.is_dir() and any(
        file.info is not None or file.error is not None for file in scan_snapshots(target)
    )


def _metadata(
    found: Sequence[_Timed], present: Sequence[SnapshotInfo], rule: TimeRule
) -> dict[str, str]:
    """What the snapshots of all checkpoints have in common."""
    stride = rule.stride
    if present and rule.per_step is None:
        tracked = [info for info in present if info.history]
        stride = tracked[-1].history[-1][0] if tracked else stride
    last = found[-1].checkpoint
    identity = [[t.nimg for t in found], [[n, s.shape] for n, s in last.specs.items()]]
    name = json.dumps([str(last.path.resolve()), identity])
    run = "raw-" + xxhash.xxh3_64_hexdigest(name.encode())
    metadata = {
        "format": RAW_FORMAT,
        "run": present[0].run if present else last.metadata.get("run", run),
        "stride": repr(min(stride, found[0].nimg)),
        **{k: v for k, v in last.metadata.items() if k in EXTRA_KEYS},
    }
    if rule.clock != "images":
        metadata["clock"] = rule.clock
    return metadata


def _size(checkpoint: Checkpoint) -> int:
    return sum(spec.nbytes for spec in checkpoint.specs.values())


class _Bytes:
    """Progress in bytes."""

    def __init__(self, total: int, progress: Progress | None):
        self._total, self._done, self._progress = total, 0, progress

    def add(self, count: int) -> None:
        self._done += count
        if self._progress is not None:
            self._progress(self._done, self._total)


def _write(
    found: Sequence[_Timed],
    target: Path,
    order: Sequence[str],
    metadata: Mapping[str, str],
    copy: bool,
    done: _Bytes,
) -> list[SnapshotInfo]:
    """Write the snapshots; those that are there with the same values are kept."""
    made: list[SnapshotInfo] = []
    new: list[Path] = []
    try:
        for timed in found:
            path = target / f"raw-{timed.nimg:010d}.safetensors"
            described = {
                **metadata,
                "nimg": str(timed.nimg),
                "dtype": _dtype(timed.checkpoint),
                "source": str(timed.checkpoint.path.resolve()),
            }
            if not path.exists():
                new.append(path)
                _write_one(timed.checkpoint, path, order, described, copy, done)
                info = read_info(path)
            elif (info := read_info(path)) is None or info.header.digest != _content(
                timed.checkpoint, order, done
            ):
                raise ValueError(
                    f"the run must not hold other weights of that time, {path} does; import"
                    f" {timed.checkpoint.path.name} into a new run"
                )
            assert info is not None
            made.append(info)
    except BaseException:
        for path in new:
            path.unlink(missing_ok=True)
        raise
    return made


def _write_one(
    checkpoint: Checkpoint,
    path: Path,
    order: Sequence[str],
    metadata: Mapping[str, str],
    copy: bool,
    done: _Bytes,
) -> None:
    """Write a snapshot that refers to a checkpoint, or holds its values."""
    if checkpoint.header is not None and not copy:
        header = checkpoint.header
        tensors = {name: header.tensors[name] for name in order}
        header = dataclasses.replace(header, path=path, tensors=tensors, shards=header.sources)
        save_reference(path, header, _content(checkpoint, order, done), metadata)
        return
    specs = {n: TensorSpec(checkpoint.specs[n].type, checkpoint.specs[n].shape) for n in order}
    with TensorWriter(path, specs, metadata) as writer:
        for data in _data(checkpoint, order, done):
            writer.append(data)


def _content(checkpoint: Checkpoint, order: Sequence[str], done: _Bytes) -> str:
    """The xxh3-128 of the values of a checkpoint."""
    state = xxhash.xxh3_128()
    for data in _data(checkpoint, order, done):
        state.update(data)
    return state.hexdigest()


def _data(checkpoint: Checkpoint, order: Sequence[str], done: _Bytes) -> Iterator[memoryview]:
    """The bytes of all values, which must be finite, a part at a time."""
    for name in order:
        for values in checkpoint.values(name):
            check_finite(values, name, checkpoint.path)
            data = as_bytes(values.contiguous())
            yield data
            done.add(len(data))


def _dtype(checkpoint: Checkpoint) -> str:
    """The type in which most of the weights are stored, which decides how they are rounded."""
    counts: Counter[str] = Counter()
    for spec in checkpoint.specs.values():
        if spec.is_floating_point:
            counts[_DTYPES[spec.type]] += spec.numel
    return counts.most_common(1)[0][0]
