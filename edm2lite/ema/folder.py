"""Folders of snapshots: which files they hold, and whether these belong together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edm2lite.ema.course import check_one_course
from edm2lite.ema.snapshot import FORMAT, SnapshotInfo, read_info

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScannedFile:
    """A safetensors file in a folder of snapshots, intact or damaged.

    Attributes:
        path: The file.
        info: Header of the snapshot; None for files of another kind and for unreadable headers.
        error: Why the file cannot be read as it is; None if it can.
    """

    path: Path
    info: SnapshotInfo | None
    error: ValueError | None = None


def snapshot_folder(source: Path) -> Path:
    """The ``snapshots`` folder of a run, or ``source`` itself if it has none.

    Example:
        >>> import tempfile
        >>> run = Path(tempfile.mkdtemp())
        >>> snapshot_folder(run) == run
        True
    """
    source = Path(source)
    return source / "snapshots" if (source / "snapshots").is_dir() else source


def scan_snapshots(
    source: Path, progress: Callable[[int, int], object] | None = None
) -> list[ScannedFile]:
    """Every safetensors file of a run or folder, by name, whatever its state.

    Only headers are read.

    Args:
        source: A run, or a folder of snapshots.
        progress: Called with the number of headers read and of all files after each file.

    Raises:
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "a.safetensors").write_bytes(b"truncated")
        >>> [(file.path.name, file.info) for file in scan_snapshots(folder)]
        [('a.safetensors', None)]
    """
    folder = snapshot_folder(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder of a run")
    paths, files = sorted(folder.glob("*.safetensors")), []
    for path in paths:
        files.append(_scan(path))
        if progress is not None:
            progress(len(files), len(paths))
    return files


def list_snapshots(
    source: Path, progress: Callable[[int, int], object] | None = None
) -> list[SnapshotInfo]:
    """The snapshots of a run or folder, by time and exponent.

    Only headers are read. Files of other kinds (models, statistics, reconstructions) are skipped,
    and so is what is no file (a pipe, a link to nothing), with a warning.

    Args:
        source: A run, or a folder of snapshots.
        progress: Called with the number of headers read and of all files after each file.

    Raises:
        FileNotFoundError: If the folder does not exist or holds no snapshot.
        ValueError: If a file is damaged, two files hold the same average, or the files are of
            different runs, courses of a run, or models.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA
        >>> ema, run = PowerFunctionEMA({"w": torch.ones(3)}), tempfile.mkdtemp()
        >>> for nimg in (64, 128):
        ...     ema.update(nimg)
        ...     _ = ema.save_snapshots(f"{run}/snapshots")
        >>> [(info.nimg, info.sigma_rel) for info in list_snapshots(run)]
        [(64, 0.05), (64, 0.1), (128, 0.05), (128, 0.1)]
    """
    folder = snapshot_folder(source)
    files = scan_snapshots(source, progress)
    for file in files:
        if file.error is not None and file.path.is_file():
            raise file.error
        if file.error is not None:
            logger.warning("passed over: %s", file.error)
    infos = [file.info for file in files if file.info is not None]
    if not infos:
        raise FileNotFoundError(
            f"{folder} holds no EMA snapshot (*.safetensors with format {FORMAT}); give the folder"
            " of a run that has saved some"
        )
    infos.sort(key=lambda info: (info.nimg, -info.gamma))
    _check_one_run(folder, infos)
    return infos


def snapshots_of_run(folder: Path, run: str) -> list[SnapshotInfo]:
    """The snapshots in a folder to which a run is about to write; those of another are refused.

    A damaged file is only logged: reading the folder reports it again.

    Args:
        folder: Folder to write to; it need not exist.
        run: Identifier of the run that is about to write.

    Raises:
        ValueError: If the folder holds a snapshot of another run.

    Example:
        >>> import tempfile
        >>> snapshots_of_run(Path(tempfile.mkdtemp()), "a1")
        []
    """
    infos = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            info = read_info(path)
        except ValueError as error:
            logger.warning("a damaged file lies among the snapshots: %s", error)
            continue
        if info is None:
            continue
        if info.run != run:
            raise ValueError(
                f"snapshots in one folder must come from one run, {folder} holds run {info.run} and"
                f" this is run {run}; give another folder, or load_state_dict() of that run's"
                " checkpoint to continue it"
            )
        infos.append(info)
    return infos


def tensor_shapes(info: SnapshotInfo) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes of the tensors in file order: equal for all snapshots of a run."""
    return tuple((name, spec.shape) for name, spec in info.header.tensors.items())


def _scan(path: Path) -> ScannedFile:
    try:
        return ScannedFile(path, read_info(path))
    except ValueError as error:
        try:
            return ScannedFile(path, read_info(path, check_size=False), error)
        except ValueError:
            return ScannedFile(path, None, error)


def _check_one_run(folder: Path, infos: Sequence[SnapshotInfo]) -> None:
    runs = sorted({info.run for info in infos})
    if len(runs) > 1:
        raise ValueError(
            f"snapshots in one folder must come from one run, {folder} mixes runs"
            f" {', '.join(runs)}; move all but one run's files elsewhere"
        )
    clocks = sorted({info.clock for info in infos})
    if len(clocks) > 1:
        raise ValueError(
            f"snapshots in one folder must be timed by one clock, those in {folder} count"
            f" {' and '.join(clocks)}; move the files of one clock elsewhere"
        )
    shapes = tensor_shapes(infos[0])
    seen: dict[tuple[int, float], Path] = {}
    for info in infos:
        if tensor_shapes(info) != shapes:
            raise ValueError(
                f"snapshots must hold the same tensors in one order, {info.path.name} and"
                f" {infos[0].path.name} in {folder} differ; move the odd one out of the folder"
            )
        other = seen.setdefault((info.nimg, info.gamma), info.path)
        if other != info.path:
            raise ValueError(
                f"every average must be stored once, {other.name} and {info.path.name} in {folder}"
                f" both hold {info.content} at nimg = {info.nimg}; remove one"
            )
    check_one_course(folder, infos)
