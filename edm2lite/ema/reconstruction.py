"""Rebuilds averages of any length from stored snapshots in one pass over the files.

Each file is read once, block by block, whatever the number of targets; a block of all K files is a
matrix [K, n] and the R targets are its product with the coefficients. Digests are checked on the
way, and outputs take their names only if every input was sound.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import xxhash
from torch import Tensor

from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import SnapshotInfo, list_snapshots
from edm2lite.ema.solve import Solution, solve_paper
from edm2lite.tensorfile import TensorSpec, TensorWriter, check_digest, read_header

FORMAT = "edm2lite.model/1"
SOLVERS = {"paper": solve_paper}
_BLOCK_BYTES = 64 * 2**20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reconstruction:
    """One rebuilt average.

    Attributes:
        profile: What was asked for: exponent and end in images.
        sigma_rel: Relative width, as asked for (never rounded).
        coefficients: [K], one per entry of ``inputs``.
        inputs: The snapshots used.
        profile_error: Relative L2 distance of the profile obtained from ``profile``.
        metadata: What the output file says of itself, provenance included.
        state_dict: The tensors, when not written to a file.
        path: The file, when written.
    """

    profile: PowerFunction
    sigma_rel: float
    coefficients: np.ndarray
    inputs: tuple[SnapshotInfo, ...] = field(repr=False)
    profile_error: float
    metadata: dict[str, str] = field(repr=False)
    state_dict: dict[str, Tensor] | None = field(default=None, repr=False)
    path: Path | None = None

    @property
    def gamma(self) -> float:
        return self.profile.gamma

    @property
    def nimg(self) -> int:
        return self.profile.nimg


def plan_targets(
    source: str | Path | Sequence[SnapshotInfo],
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    nimg: int | None = None,
    solver: str = "paper",
) -> list[Reconstruction]:
    """The targets with their coefficients and errors; headers are read, no tensor.

    Args:
        source: A run, a folder of snapshots, or their list.
        sigma_rel: Relative widths, each in (0, 0.2887).
        gamma: Exponents >= 0, in place of ``sigma_rel``.
        nimg: End of the averages in images; some snapshot must end there. [default: the latest]
        solver: A key of ``SOLVERS``.

    Raises:
        FileNotFoundError, ValueError: As :func:`list_snapshots`; unusable targets.
    """
    infos = list_snapshots(Path(source)) if isinstance(source, str | Path) else list(source)
    if (sigma_rel is None) == (gamma is None):
        raise ValueError("give the lengths either as sigma_rel or as gamma")
    if solver not in SOLVERS:
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, got {solver!r}")
    times = sorted({info.nimg for info in infos if info.nimg > 0})
    end = times[-1] if nimg is None else nimg
    if end not in times:
        raise ValueError(
            f"an average can end only where a snapshot was saved, none is at nimg = {end}; the"
            f" nearest is {min(times, key=lambda t: abs(t - end))}"
        )
    if sigma_rel is not None:
        widths = [float(s) for s in np.atleast_1d(sigma_rel)]
        targets = [PowerFunction.of_width(s, end) for s in widths]
    else:
        targets = [PowerFunction(float(g), end) for g in np.atleast_1d(np.asarray(gamma))]
        widths = [target.sigma_rel for target in targets]
    used = tuple(info for info in infos if 0 < info.nimg <= end)
    solution = SOLVERS[solver]([info.profile for info in used], targets)
    return [
        Reconstruction(
            profile=target,
            sigma_rel=width,
            coefficients=solution.coefficients[:, r],
            inputs=used,
            profile_error=float(solution.profile_error[r]),
            metadata=_metadata(target, width, used, solution, r, solver),
        )
        for r, (target, width) in enumerate(zip(targets, widths, strict=True))
    ]


def reconstruct(
    source: str | Path | Sequence[SnapshotInfo],
    *,
    sigma_rel: float | Sequence[float] | None = None,
    gamma: float | Sequence[float] | None = None,
    nimg: int | None = None,
    out: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    solver: str = "paper",
    progress: Progress | None = None,
) -> Iterator[Reconstruction]:
    """Rebuild averages; yields one result per target in the order asked.

    Args:
        source, sigma_rel, gamma, nimg, solver: As :func:`plan_targets`.
        out: Folder for the files, named ``ema-<sigma_rel>-<nimg>.safetensors``; without it the
            results carry their ``state_dict``.
        dtype: Floating-point type of the results.
        progress: Called with (bytes read, bytes in all) after each block.

    Raises:
        FileNotFoundError, ValueError: As :func:`plan_targets`; a snapshot is damaged, or ``out`` is
            the folder that holds the snapshots. No output file is written then.
    """
    plans = plan_targets(source, sigma_rel=sigma_rel, gamma=gamma, nimg=nimg, solver=solver)
    yield from build(plans, out=out, dtype=dtype, progress=progress)


def build(
    plans: Sequence[Reconstruction],
    *,
    out: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> Iterator[Reconstruction]:
    """Carry out plans made by one call of :func:`plan_targets`, in one pass over their inputs.

    Args:
        plans: All or some of them.
        out, dtype, progress: As :func:`reconstruct`.

    Raises:
        ValueError: As :func:`reconstruct`.
    """
    inputs = plans[0].inputs
    specs = {
        name: TensorSpec(dtype if s.dtype.is_floating_point else s.dtype, s.shape)
        for name, s in inputs[0].header.tensors.items()
    }
    coefficients = np.stack([plan.coefficients for plan in plans], axis=1)
    if out is None:
        dicts: list[dict[str, Tensor]] = [{} for _ in plans]
        for name, values in _stream(inputs, coefficients, specs, progress):
            for state, value in zip(dicts, values, strict=True):
                piece = value.clone()
                state[name] = torch.cat([state[name], piece]) if name in state else piece
        for plan, state in zip(plans, dicts, strict=True):
            shaped = {name: state[name].reshape(spec.shape) for name, spec in specs.items()}
            yield dataclasses.replace(plan, state_dict=shaped)
        return
    paths = output_paths(Path(out), plans)
    with ExitStack() as stack:
        writers = [
            stack.enter_context(TensorWriter(path, specs, plan.metadata))
            for path, plan in zip(paths, plans, strict=True)
        ]
        for _, values in _stream(inputs, coefficients, specs, progress):
            for writer, value in zip(writers, values, strict=True):
                writer.write(value)
    for plan, path in zip(plans, paths, strict=True):
        yield dataclasses.replace(plan, path=path)


def output_paths(out: Path, plans: Sequence[Reconstruction]) -> list[Path]:
    """File of each target in ``out``.

    Raises:
        ValueError: ``out`` is where the snapshots are, or two targets share a name.
    """
    if any(info.path.resolve().parent == out.resolve() for info in plans[0].inputs):
        raise ValueError(
            f"{out} holds the snapshots themselves; give another folder for the results"
        )
    paths = [out / f"ema-{plan.sigma_rel:.5f}-{plan.nimg:010d}.safetensors" for plan in plans]
    if len(set(paths)) < len(paths):
        raise ValueError(
            "lengths must differ in the first 5 decimals of sigma_rel, got"
            f" {[plan.sigma_rel for plan in plans]}"
        )
    return paths


def is_current(path: Path, plan: Reconstruction, dtype: torch.dtype) -> bool:
    """Whether ``path`` already holds this reconstruction: same inputs, coefficients and dtype."""
    if not path.is_file():
        return False
    try:
        header = read_header(path)
    except ValueError:
        return False  # damaged: it is written anew
    same_type = all(s.dtype == dtype for s in header.tensors.values() if s.dtype.is_floating_point)
    return same_type and plan.metadata.items() <= header.metadata.items()


def _stream(
    inputs: Sequence[SnapshotInfo],
    coefficients: np.ndarray,
    specs: Mapping[str, TensorSpec],
    progress: Progress | None,
) -> Iterator[tuple[str, Sequence[Tensor]]]:
    """(name, one flat piece per target) in file order; digests are checked before the last one."""
    weights = torch.from_numpy(coefficients.T.copy()).float()  # [R, K]
    digests = [xxhash.xxh3_128() for _ in inputs]
    total = sum(info.header.data_bytes for info in inputs)
    block = max(1, _BLOCK_BYTES // (4 * len(inputs)))  # elements per file and step
    done = 0
    with ExitStack() as stack:
        files = [stack.enter_context(open(info.path, "rb", buffering=0)) for info in inputs]
        for file, info in zip(files, inputs, strict=True):
            file.seek(info.header.data_start)
        held: tuple[str, Sequence[Tensor]] | None = None
        for name, spec in inputs[0].header.tensors.items():
            for begin in range(0, spec.numel, block):
                count = min(block, spec.numel - begin)
                if held is not None:
                    yield held
                pieces = [
                    _read(file, info, name, count, digest)
                    for file, info, digest in zip(files, inputs, digests, strict=True)
                ]
                done += sum(piece.nbytes for piece in pieces)
                held = (name, _combine(pieces, weights, specs[name].dtype))
                if progress is not None:
                    progress(done, total)
        for info, digest in zip(inputs, digests, strict=True):
            check_digest(info.header, digest.hexdigest())
        if held is not None:
            yield held


def _combine(pieces: Sequence[Tensor], weights: Tensor, dtype: torch.dtype) -> Sequence[Tensor]:
    """Weighted sums of one block; tensors that are not floating-point come from the last file."""
    if not dtype.is_floating_point:
        return [pieces[-1]] * len(weights)
    stacked = torch.stack([piece.float() for piece in pieces])  # [K, n]
    last = stacked[-1].clone()
    # Coefficients sum to 1, so the sum may run over differences from the last snapshot: they are
    # small, and so is the rounding of their sum.
    return [row.to(dtype) for row in torch.addmm(last, weights, stacked.sub_(last))]


def _read(
    file: io.FileIO, info: SnapshotInfo, name: str, count: int, digest: xxhash.xxh3_128
) -> Tensor:
    spec = info.header.tensors[name]
    data = bytearray(count * spec.dtype.itemsize)
    view = memoryview(data)
    while view:
        got = file.readinto(view)
        if not got:
            raise ValueError(f"{info.path} ended early; it changed while it was read")
        view = view[got:]
    digest.update(data)
    return torch.frombuffer(data, dtype=spec.dtype)


def _metadata(
    target: PowerFunction,
    sigma_rel: float,
    used: Sequence[SnapshotInfo],
    solution: Solution,
    r: int,
    solver: str,
) -> dict[str, str]:
    inputs = [
        {"file": info.path.name, "digest": info.header.digest, "coefficient": float(x)}
        for info, x in zip(used, solution.coefficients[:, r], strict=True)
    ]
    return {
        "format": FORMAT,
        "run": used[0].run,
        "nimg": str(target.nimg),
        "sigma_rel": repr(sigma_rel),
        "gamma": repr(target.gamma),
        "solver": solver,
        "profile_error": repr(float(solution.profile_error[r])),
        "inputs": json.dumps(inputs, separators=(",", ":")),
        **used[-1].extra,
    }
