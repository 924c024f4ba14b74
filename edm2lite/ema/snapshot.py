"""The snapshot file: one average of a model at one moment of training, or its weights themselves.

A folder of snapshots is all that post-hoc reconstruction needs. The metadata of each file holds its
profile exactly (:class:`SnapshotInfo`); the file name is for people and is never parsed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edm2lite.ema.profile import PowerFunction, Step, Stored
from edm2lite.ema.references import resolved
from edm2lite.ema.rounding import ROUNDING
from edm2lite.messages import one_line
from edm2lite.strict_json import parse
from edm2lite.tensorfile import Header, TensorSpec, TensorWriter, all_finite, read_header
from edm2lite.tensorheader import type_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = "edm2lite.ema/1"
RAW_FORMAT = "edm2lite.raw/1"
"""Format of snapshots that hold the weights themselves, or refer to files that do."""
EXTRA_KEYS = (
    "model", "adapter", "encoder", "text_encoder", "data", "label_dropout", "unlabeled",
    "condition_normalization", "class_names", "clock",
)  # fmt: skip
"""Metadata that describes the model itself and is copied into everything rebuilt from it."""


@dataclass(frozen=True)
class SnapshotInfo:
    """The header of a snapshot: what the file holds, without its tensors.

    Attributes:
        path: The file.
        run: Identifier of the training run; snapshots of different runs never mix.
        profile: Exponent and end of the average, in images; of raw weights, their moment.
        history: Run-length list ``[[stride, updates], ...]`` of the updates that the average saw;
            empty for raw weights.
        start_nimg: Image count at which averaging began; the weights of that moment hold the mass
            of the time before it. 0 for a run that was averaged from its start.
        dtype: Name of the stored floating-point type.
        header: Shapes and positions of the tensors, metadata, digest.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, list_snapshots
        >>> ema, folder = PowerFunctionEMA({"w": torch.ones(3)}, [0.10]), tempfile.mkdtemp()
        >>> ema.update(nimg=64)
        >>> _ = ema.save_snapshots(folder)
        >>> (info,) = list_snapshots(folder)
        >>> info.nimg, info.sigma_rel, info.history, info.dtype
        (64, 0.1, ((64, 1),), 'float32')
    """

    path: Path
    run: str
    profile: Stored
    history: tuple[tuple[int, int], ...]
    start_nimg: int
    dtype: str
    header: Header = field(repr=False)

    @property
    def nimg(self) -> int:
        """End of the average, in images."""
        return self.profile.nimg

    @property
    def gamma(self) -> float:
        """Exponent of the average; infinity for raw weights."""
        return self.profile.gamma

    @property
    def is_raw(self) -> bool:
        """Whether this holds the weights of one moment, and no average."""
        return isinstance(self.profile, Step)

    @property
    def content(self) -> str:
        """What this holds, in messages: ``sigma_rel 0.05``, or ``raw weights``."""
        return "raw weights" if self.is_raw else f"sigma_rel {self.sigma_rel:g}"

    @property
    def clock(self) -> str:
        """What ``nimg`` counts: ``images``, ``tokens`` or ``steps``."""
        return self.header.metadata.get("clock", "images")

    @property
    def sigma_rel(self) -> float:
        """EMA length, exactly as it was requested; 0 for raw weights."""
        return 0.0 if self.is_raw else float(self.header.metadata["sigma_rel"])

    @property
    def extra(self) -> dict[str, str]:
        """Descriptions of the model and of what it was trained on, as far as the file has them."""
        return {k: v for k, v in self.header.metadata.items() if k in EXTRA_KEYS}


def snapshot_path(folder: Path, sigma_rel: float, nimg: int) -> Path:
    """Path of a snapshot: ``ema-<sigma_rel>-<nimg>.safetensors`` in ``folder``.

    Example:
        >>> snapshot_path(Path(), sigma_rel=0.10, nimg=64_000).name
        'ema-0.10000-0000064000.safetensors'
    """
    return Path(folder) / f"ema-{sigma_rel:.5f}-{nimg:010d}.safetensors"


def write_snapshot(
    folder: Path,
    tensors: Mapping[str, Tensor],
    *,
    run: str,
    profile: PowerFunction,
    sigma_rel: float,
    history: Iterable[Sequence[int]],
    start_nimg: int,
    dtype: torch.dtype,
    extra: Mapping[str, str],
) -> Path:
    """Store one average in a file, atomically.

    Args:
        folder: Folder of the snapshots. It is created if missing.
        tensors: Name -> tensor. Those that are not floating-point are stored as they are.
        run: Identifier of the run.
        profile: Exponent and end of the average.
        sigma_rel: EMA length, as it was requested.
        history: Run-length list of the updates that the average saw.
        start_nimg: Image count at which averaging began.
        dtype: Stored floating-point type.
        extra: Further metadata.

    Returns:
        The file.

    Raises:
        ValueError: If a tensor is not finite once stored (NaN, or too large for ``dtype``).
        OSError: If the file cannot be written. No partial file is left behind.

    Example:
        >>> import tempfile, torch
        >>> path = write_snapshot(
        ...     Path(tempfile.mkdtemp()), {"w": torch.ones(3)}, run="a1", sigma_rel=0.10,
        ...     profile=PowerFunction.of_width(0.10, 64), history=[(64, 1)], start_nimg=0,
        ...     dtype=torch.float16, extra={},
        ... )
        >>> read_info(path).run
        'a1'
    """
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
        _write(path, tensors, dtype, metadata)
    except OSError as error:
        reason = f"snapshot not written ({error.strerror or error}); make room and save again"
        raise OSError(error.errno, reason, str(path)) from error
    return path


def _write(
    path: Path, tensors: Mapping[str, Tensor], dtype: torch.dtype, metadata: Mapping[str, str]
) -> None:
    specs = {
        name: TensorSpec(type_of(dtype if v.is_floating_point() else v.dtype), tuple(v.shape))
        for name, v in tensors.items()
    }
    with TensorWriter(path, specs, metadata) as writer:
        for name, value in tensors.items():
            stored = value.to(specs[name].dtype)
            if stored.is_floating_point() and not all_finite(stored):
                raise ValueError(
                    f"snapshot tensors must be finite as {metadata['dtype']}, {name} at nimg ="
                    f" {metadata['nimg']} is not; nothing was written for it"
                )
            writer.write(stored)


def read_info(path: Path, check_size: bool = True) -> SnapshotInfo | None:
    """The header of a snapshot; None if the file is a safetensors file of another kind.

    Args:
        path: The file.
        check_size: Whether to require the file to be as long as its header says.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.tensorfile import save_tensors
        >>> path = save_tensors(Path(tempfile.mkdtemp()) / "w", {"w": torch.ones(3)}, {})
        >>> print(read_info(path))  # not a snapshot
        None
    """
    header = read_header(path, check_size)
    meta = header.metadata
    if meta.get("format") not in (FORMAT, RAW_FORMAT):
        return None
    if header.digest is None:
        raise ValueError(
            f"{path} must carry digests of its header and values, and has none: another tool wrote"
            " it anew; restore the original from a copy or move it out of the folder"
        )
    try:
        info = _described(Path(path), header)
        _check(info)
    except (KeyError, ValueError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path} must have the metadata of {meta['format']}, missing or malformed is"
            f" {one_line(error, 200)};"
            " restore it from a copy or move it out of the folder"
        ) from error
    return replace(info, header=resolved(header))


def _described(path: Path, header: Header) -> SnapshotInfo:
    meta = header.metadata
    nimg, history, start_nimg = int(meta["nimg"]), [], 0
    if meta["format"] == RAW_FORMAT:
        profile: Stored = Step(nimg, float(meta["stride"]))
    else:
        profile = PowerFunction(float(meta["gamma"]), nimg)
        history, start_nimg = parse(meta["history"]), int(meta["start_nimg"])
    return SnapshotInfo(
        path=path,
        run=meta["run"],
        profile=profile,
        history=tuple((int(s), int(n)) for s, n in history),
        start_nimg=start_nimg,
        dtype=meta["dtype"],
        header=header,
    )


def _check(info: SnapshotInfo) -> None:
    """Refuse what no tracker writes.

    Raises:
        ValueError: If a number is out of range, or the history does not add up.
    """
    if info.dtype not in ROUNDING:
        raise ValueError(f"dtype {info.dtype!r}")
    if not 0 <= info.start_nimg < info.nimg < 2**63:
        raise ValueError(f"nimg {info.nimg} after {info.start_nimg}")
    if info.is_raw:
        return
    if not info.gamma <= 1e100:
        raise ValueError(f"gamma {info.gamma}")
    if not 0 < info.sigma_rel < 0.29 or any(s <= 0 or n <= 0 for s, n in info.history):
        raise ValueError(f"sigma_rel {info.sigma_rel}, history {info.history[:3]}")
    if info.start_nimg + sum(stride * count for stride, count in info.history) != info.nimg:
        raise ValueError(f"a history that ends elsewhere than at nimg = {info.nimg}")
    before, _ = parse(info.header.metadata.get("previous", '[0, ""]'))
    if type(before) is not int or not 0 <= before < info.nimg:
        raise ValueError("previous")
