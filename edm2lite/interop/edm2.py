"""Imports official EDM2 network pickles as model files and snapshots of this package.

Files are named ``<prefix>-<kimg, 7 digits>-<sigma_rel, 3 decimals>.pkl``: both the raw snapshots
that training writes, with two lengths per time, and post-hoc reconstructions of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from edm2lite.atomic import replacing_folder
from edm2lite.claim import claim_file
from edm2lite.ema.formulas import sigma_rel_to_gamma
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import write_snapshot
from edm2lite.ema.stream import Progress
from edm2lite.interop.edm2_network import Network, read_network
from edm2lite.tensorfile import MODEL_FORMAT, save_tensors

NAME = re.compile(r"(.+)-(\d{7,})-(\d\.\d{3})\.pkl")


@dataclass(frozen=True)
class Average:
    """The average that the name of a file describes.

    Attributes:
        prefix: Beginning of the name.
        nimg: Training time in images: the multiple of 1024 with this many whole thousands.
        sigma_rel: EMA length, exactly as it was requested.

    Example:
        >>> Average.of(Path("network-snapshot-0008388-0.050.pkl"))
        Average(prefix='network-snapshot', nimg=8388608, sigma_rel=0.05)
    """

    prefix: str
    nimg: int
    sigma_rel: float

    @classmethod
    def of(cls, path: Path) -> Average | None:
        """The average of a file; None if the name has no length, or a time EDM2 cannot write."""
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
    """Convert one network to a model file, with its weights in the types in which they are stored.

    Nothing in the pickle is executed.

    Args:
        path: The pickle: a raw snapshot or a post-hoc reconstruction.
        out: The file to write. [default: beside it, ``.safetensors`` in place of ``.pkl``]
        progress: Called with the bytes read and the total after each block.

    Returns:
        The file; :func:`edm2lite.load` and :meth:`edm2lite.diffusion.precond.Precond.load` read it.

    Raises:
        FileNotFoundError: If ``path`` does not exist.
        ValueError: If the pickle is damaged, asks for anything that a network does not need, or
            holds a network that cannot be represented here, or if ``out`` exists.

    Example:
        >>> import pickle, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "net.pkl"
        >>> _ = path.write_bytes(pickle.dumps(exec))  # what an attack would ask for
        >>> import_file(path)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: ...net.pkl asks for builtins.exec, which does not belong in it; ...
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
    """Convert the raw snapshots of a run, either all of them or, on an error, none.

    Files keep the type in which they are stored. Those of 0 images are left out, since no average
    ends there. Memory holds one file and its tensors at a time.

    Args:
        folder: Folder of ``<prefix>-<kimg>-<sigma_rel>.pkl`` with one prefix.
        out: Folder for the run; the snapshots are written to ``out/snapshots``.
        batch_size: Images of a training step; it only enters predicted errors.
        progress: Called with the bytes read and the total after each block.

    Returns:
        The snapshots, by time and length.

    Raises:
        FileNotFoundError: If the folder holds no such files.
        ValueError: If a pickle cannot be imported, the files are of more than one run, ``out``
            holds snapshots already, or another process writes them.

    Example:
        >>> import tempfile
        >>> import_folder(tempfile.mkdtemp(), "runs/xs")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        FileNotFoundError: ... must hold snapshots named <prefix>-<kimg>-<sigma_rel>.pkl, ...
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    files = _find(Path(folder))
    target = Path(out) / "snapshots"
    with claim_file(target) as mine:
        if target.exists():
            raise ValueError(
                f"the result must go to a new folder, {target} exists; give another --out"
            )
        with replacing_folder(target) as partial:
            written = _convert(files, partial, batch_size, progress)
            mine.check()
    return [target / path.name for path in written]


def _convert(
    files: Sequence[tuple[Path, Average]],
    folder: Path,
    batch_size: int,
    progress: Progress | None,
) -> list[Path]:
    """Write the snapshots of all files."""
    done, total = 0, sum(path.stat().st_size for path, _ in files)
    run = ""
    written: list[Path] = []
    for path, average in files:
        network = read_network(path, _continued(progress, done, total))
        if not written:
            run, constant = f"edm2-{network.digest[:16]}", _constant(network)
        if _constant(network) != constant:
            raise ValueError(
                f"snapshots must be of one run, {path} and {files[0][0].name} are of different"
                " networks; move one of them out of the folder"
            )
        written.append(_write(folder, path, network, average, run, batch_size))
        del network  # before the next one is read
        done += path.stat().st_size
    return written


def _find(folder: Path) -> list[tuple[Path, Average]]:
    """Snapshots and the averages in their names, by time and length, without those of 0 images."""
    named = [path for path in sorted(folder.glob("*.pkl")) if NAME.fullmatch(path.name)]
    files = [(path, average) for path in named if (average := Average.of(path)) is not None]
    unknown = sorted(set(named) - {path for path, _ in files})
    if unknown:
        raise ValueError(
            f"{unknown[0]} must have a time and a length in its name that EDM2 can write, and does"
            " not; rename it or move it out of the folder"
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
    """A callback for one file that reports the progress over all files."""
    return None if progress is None else lambda read, _: progress(done + read, total)


def _constant(network: Network) -> tuple[object, ...]:
    """What all snapshots of a run have in common: description, types, and constant buffers."""
    dtypes = tuple(value.dtype for value in network.tensors.values())
    fixed = [value for name, value in network.tensors.items() if "fourier." in name]
    return network.description, dtypes, [value.tolist() for value in fixed]


def _write(
    folder: Path, path: Path, network: Network, average: Average, run: str, batch_size: int
) -> Path:
    # A snapshot has one floating-point type; float32 holds the values of the others exactly.
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
