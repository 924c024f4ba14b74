"""The snapshot file: one power-function average of a model at one moment of training.

A folder of snapshots is everything that post-hoc reconstruction needs. The metadata of each file
holds its profile exactly (:class:`SnapshotInfo`); the file name is for people and is never parsed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from edm2lite.ema.profile import PowerFunction
from edm2lite.tensorfile import Header, TensorSpec, TensorWriter, read_header

logger = logging.getLogger(__name__)

FORMAT = "edm2lite.ema/1"
EXTRA_KEYS = ("model", "encoder", "data")
"""Metadata that describes the model itself and travels into everything rebuilt from a snapshot."""


@dataclass(frozen=True)
class SnapshotInfo:
    """One header, no tensors.

    Attributes:
        path: The file.
        run: Identifier of the training run; snapshots of different runs never mix.
        profile: Exponent and end of the average, in images.
        history: Run-length list ``[[stride, updates], ...]`` of the updates that the average saw.
        start_nimg: Image count at which averaging began; weights of that moment hold the mass of
            the time before it (0 for a run averaged from its start).
        dtype: Name of the stored floating-point type.
        header: Tensor shapes and offsets, metadata, digest.
    """

    path: Path
    run: str
    profile: PowerFunction
    history: tuple[tuple[int, int], ...]
    start_nimg: int
    dtype: str
    header: Header = field(repr=False)

    @property
    def nimg(self) -> int:
        return self.profile.nimg

    @property
    def gamma(self) -> float:
        return self.profile.gamma

    @property
    def sigma_rel(self) -> float:
        return float(self.header.metadata["sigma_rel"])

    @property
    def extra(self) -> dict[str, str]:
        """Model, encoder and data descriptions, for whoever rebuilds a model from this average."""
        return {k: v for k, v in self.header.metadata.items() if k in EXTRA_KEYS}


def snapshot_path(folder: Path, sigma_rel: float, nimg: int) -> Path:
    """Where a snapshot is written: ``ema-<sigma_rel>-<nimg>.safetensors``."""
    return Path(folder) / f"ema-{sigma_rel:.5f}-{nimg:010d}.safetensors"


def write_snapshot(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    run: str,
    profile: PowerFunction,
    sigma_rel: float,
    history: Iterable[tuple[int, int]],
    start_nimg: int,
    dtype: torch.dtype,
    extra: Mapping[str, str],
) -> Path:
    """Store one average, atomically; floating-point tensors as ``dtype``, others as they are.

    Raises:
        ValueError: A tensor is not finite once stored (NaN, or too large for ``dtype``).
        OSError: The file could not be written; nothing has its name.
    """
    specs = {
        name: TensorSpec(dtype if v.is_floating_point() else v.dtype, tuple(v.shape))
        for name, v in tensors.items()
    }
    metadata = {
        "format": FORMAT,
        "run": run,
        "nimg": str(profile.nimg),
        "sigma_rel": repr(sigma_rel),
        "gamma": repr(profile.gamma),
        "history": json.dumps([list(pair) for pair in history], separators=(",", ":")),
        "start_nimg": str(start_nimg),
        "dtype": str(dtype).removeprefix("torch."),
        **extra,
    }
    path = snapshot_path(folder, sigma_rel, profile.nimg)
    try:
        with TensorWriter(path, specs, metadata) as writer:
            for name, value in tensors.items():
                stored = value.to(specs[name].dtype)
                if stored.is_floating_point() and not torch.isfinite(stored).all():
                    raise ValueError(
                        f"snapshot tensors must be finite as {metadata['dtype']}, {name} at nimg ="
                        f" {profile.nimg} is not; nothing was written for it"
                    )
                writer.write(stored)
    except OSError as error:
        reason = f"snapshot not written ({error.strerror or error}); make room and save again"
        raise OSError(error.errno, reason, str(path)) from error
    return path


@dataclass(frozen=True)
class Scanned:
    """One safetensors file of a folder of snapshots, sound or not.

    Attributes:
        path: The file.
        info: What its header says; None for files of another kind and for unreadable headers.
        error: Why it cannot be read as it is; None if it can.
    """

    path: Path
    info: SnapshotInfo | None
    error: ValueError | None = None


def read_info(path: Path, whole: bool = True) -> SnapshotInfo | None:
    """The description of a snapshot; None if the file is a sound safetensors file of another kind.

    Args:
        path: The file.
        whole: As :func:`edm2lite.tensorfile.read_header`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged.
    """
    header = read_header(path, whole)
    meta = header.metadata
    if meta.get("format") != FORMAT:
        return None
    try:
        return SnapshotInfo(
            path=Path(path),
            run=meta["run"],
            profile=PowerFunction(float(meta["gamma"]), int(meta["nimg"])),
            history=tuple((int(s), int(n)) for s, n in json.loads(meta["history"])),
            start_nimg=int(meta["start_nimg"]),
            dtype=meta["dtype"],
            header=header,
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} calls itself {FORMAT} but lacks or garbles {error}") from error


def snapshot_folder(source: Path) -> Path:
    """``source`` itself, or its ``snapshots`` sub-folder when it is the folder of a run."""
    source = Path(source)
    return source / "snapshots" if (source / "snapshots").is_dir() else source


def scan_snapshots(source: Path) -> list[Scanned]:
    """Every safetensors file of a run or folder by name, whatever its state; reads headers only.

    Raises:
        FileNotFoundError: The folder is missing.
    """
    folder = snapshot_folder(source)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}; give the folder of a run")
    return [_scan(path) for path in sorted(folder.glob("*.safetensors"))]


def list_snapshots(source: Path) -> list[SnapshotInfo]:
    """Snapshots of a run or folder by time and exponent; reads headers only.

    Files of other kinds (models, statistics, reconstructions) are passed over.

    Raises:
        FileNotFoundError: The folder is missing or holds no snapshot.
        ValueError: A file is damaged, two hold the same average, or runs or models are mixed.
    """
    folder = snapshot_folder(source)
    scanned = scan_snapshots(source)
    for file in scanned:
        if file.error is not None:
            raise file.error
    infos = [file.info for file in scanned if file.info is not None]
    if not infos:
        raise FileNotFoundError(
            f"{folder} holds no EMA snapshot (*.safetensors with format {FORMAT}); give the folder"
            " of a run that has saved some"
        )
    infos.sort(key=lambda info: (info.nimg, -info.gamma))
    _check_one_run(folder, infos)
    return infos


def refuse_other_runs(folder: Path, run: str) -> None:
    """Raise ValueError if ``folder`` holds a snapshot of a run other than ``run``."""
    for path in sorted(folder.glob("*.safetensors")):
        try:
            info = read_info(path)
        except ValueError as error:  # no reason to lose new files too: reading reports it again
            logger.warning("a damaged file lies among the snapshots: %s", error)
            continue
        if info is not None and info.run != run:
            raise ValueError(
                f"snapshots in one folder must come from one run, {folder} holds run {info.run} and"
                f" this is run {run}; give another folder, or load_state_dict() of that run's"
                " checkpoint to continue it"
            )


def _scan(path: Path) -> Scanned:
    try:
        return Scanned(path, read_info(path))
    except ValueError as error:
        try:
            return Scanned(path, read_info(path, whole=False), error)
        except ValueError:
            return Scanned(path, None, error)


def tensor_shapes(info: SnapshotInfo) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """Names and shapes in file order: the same for all snapshots of a run."""
    return tuple((name, spec.shape) for name, spec in info.header.tensors.items())


def _check_one_run(folder: Path, infos: list[SnapshotInfo]) -> None:
    runs = sorted({info.run for info in infos})
    if len(runs) > 1:
        raise ValueError(
            f"snapshots in one folder must come from one run, {folder} mixes runs"
            f" {', '.join(runs)}; move all but one run's files elsewhere"
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
                f" both hold sigma_rel {info.sigma_rel} at nimg = {info.nimg}; remove one"
            )
