"""Official EDM2 network pickles as models and snapshots of ours.

Files are named ``<prefix>-<kimg, 7 digits>-<sigma_rel, 3 decimals>.pkl``, the raw snapshots that
training writes (two lengths per time) and post-hoc reconstructions of them alike.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from edm2lite.atomic import sync
from edm2lite.ema.formulas import sigma_rel_to_gamma
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import write_snapshot
from edm2lite.ema.stream import Progress
from edm2lite.interop.edm2_network import Network, read_network
from edm2lite.tensorfile import MODEL_FORMAT, save_tensors

NAME = re.compile(r"(.+)-(\d{7,})-(\d\.\d{3})\.pkl")


@dataclass(frozen=True)
class Average:
    """What the name of a file says.

    Attributes:
        prefix: What comes before.
        nimg: Training time in images: the multiple of 1024 with this many thousands.
        sigma_rel: Relative width, exactly as it was asked for.
    """

    prefix: str
    nimg: int
    sigma_rel: float

    @classmethod
    def of(cls, path: Path) -> Average | None:
        """None if the name says no length, or a time that EDM2 cannot have written."""
        match = NAME.fullmatch(path.name)
        if match is None:
            return None
        kimg, sigma_rel = int(match[2]), float(match[3])
        nimg = -(-kimg * 1000 // 1024) * 1024
        possible = nimg // 1000 == kimg and 0 < sigma_rel < 12**-0.5
        return cls(match[1], nimg, sigma_rel) if possible else None


def import_file(
    path: str | Path, out: str | Path | None = None, *, progress: Progress | None = None
) -> Path:
    """Convert one network to a model file, in the types in which its weights were stored.

    Args:
        path: The pickle.
        out: The file to write. [default: beside it, ``.safetensors`` in place of ``.pkl``]
        progress: Called with (bytes read, bytes in all).

    Returns:
        The file; :func:`edm2lite.load` and :meth:`edm2lite.diffusion.precond.Precond.load` read it.

    Raises:
        FileNotFoundError, ValueError: As :func:`read_network`, or ``out`` is taken.
    """
    path = Path(path)
    target = path.with_suffix(".safetensors") if out is None else Path(out)
    if target.exists():
        raise ValueError(f"the result must go to a new file, {target} exists; give another --out")
    network = read_network(path, progress)
    metadata = {"format": MODEL_FORMAT, **network.description, **_source(path, network)}
    average = Average.of(path)
    if average is not None:
        metadata["nimg"] = str(average.nimg)
        metadata["sigma_rel"] = repr(average.sigma_rel)
        metadata["gamma"] = repr(float(sigma_rel_to_gamma(average.sigma_rel)))
    return save_tensors(target, network.tensors, metadata)


def import_folder(
    folder: str | Path,
    out: str | Path,
    *,
    batch_size: int = 2048,
    progress: Progress | None = None,
) -> list[Path]:
    """Convert the raw snapshots of a run; all are there afterwards, in ``out/snapshots``, or none.

    Files stay in the type in which they were stored. Those of 0 images, which no average is made
    of, are left out. Memory holds one file and its tensors at a time.

    Args:
        folder: With ``<prefix>-<kimg>-<sigma_rel>.pkl`` of one prefix.
        out: Folder for the run.
        batch_size: Images of a training step; it only enters predicted errors.
        progress: Called with (bytes read, bytes in all) after each block.

    Returns:
        The snapshots, by time and length.

    Raises:
        FileNotFoundError: No such files.
        ValueError: As :func:`read_network`; files of more than one run; or ``out`` is taken.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    files = _find(Path(folder))
    target = Path(out) / "snapshots"
    if target.exists():
        raise ValueError(f"the result must go to a new folder, {target} exists; give another --out")
    partial = target.with_name("snapshots.partial")
    shutil.rmtree(partial, ignore_errors=True)
    done, total = 0, sum(path.stat().st_size for path, _ in files)
    run = ""
    written: list[Path] = []
    try:
        for path, average in files:
            network = read_network(path, _continued(progress, done, total))
            if not written:
                run, constant = f"edm2-{network.digest[:16]}", _constant(network)
            if _constant(network) != constant:
                raise ValueError(
                    f"snapshots must be of one run, {path} and {files[0][0].name} are of different"
                    " networks; leave one of them out of the folder"
                )
            written.append(_write(partial, path, network, average, run, batch_size))
            del network  # before the next one is read
            done += path.stat().st_size
        partial.rename(target)
        sync(target.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return [target / path.name for path in written]


def _find(folder: Path) -> list[tuple[Path, Average]]:
    """Snapshots with what their names say, by time and length; those of 0 images are left out."""
    named = [path for path in sorted(folder.glob("*.pkl")) if NAME.fullmatch(path.name)]
    files = [(path, average) for path in named if (average := Average.of(path)) is not None]
    strange = sorted(set(named) - {path for path, _ in files})
    if strange:
        raise ValueError(
            f"{strange[0]} must say a time and a length that EDM2 writes and does not; rename it or"
            " leave it out of the folder"
        )
    prefixes = sorted({average.prefix for _, average in files})
    if len(prefixes) > 1:
        raise ValueError(
            f"snapshots must be of one run, {folder} has files of {', '.join(prefixes)}; give each"
            " its own folder (reconstructions do not belong among the snapshots)"
        )
    files = [(path, average) for path, average in files if average.nimg > 0]
    if not files:
        raise FileNotFoundError(
            f"{folder} must hold snapshots named <prefix>-<kimg>-<sigma_rel>.pkl, as in"
            " network-snapshot-0008388-0.050.pkl, and holds none"
        )
    return sorted(files, key=lambda file: (file[1].nimg, file[1].sigma_rel))


def _continued(progress: Progress | None, done: int, total: int) -> Progress | None:
    """The progress of one file among others."""
    return None if progress is None else lambda read, _: progress(done + read, total)


def _constant(network: Network) -> tuple[object, ...]:
    """What all snapshots of a run share: description, types, and the buffers that never move."""
    dtypes = tuple(value.dtype for value in network.tensors.values())
    fixed = [value for name, value in network.tensors.items() if "fourier." in name]
    return network.description, dtypes, [value.tolist() for value in fixed]


def _write(
    folder: Path, path: Path, network: Network, average: Average, run: str, batch_size: int
) -> Path:
    # one type for a whole snapshot; float32 holds the others exactly
    dtypes = {value.dtype for value in network.tensors.values()}
    steps, rest = divmod(average.nimg, batch_size)
    return write_snapshot(
        folder,
        network.tensors,
        run=run,
        profile=PowerFunction.of_width(average.sigma_rel, average.nimg),
        sigma_rel=average.sigma_rel,
        history=[pair for pair in ((rest, min(rest, 1)), (batch_size, steps)) if pair[1]],
        start_nimg=0,
        dtype=dtypes.pop() if len(dtypes) == 1 else torch.float32,
        extra={**network.description, **_source(path, network)},
    )


def _source(path: Path, network: Network) -> dict[str, str]:
    return {"source": f"EDM2 {path.name}", "source_digest": network.digest}
