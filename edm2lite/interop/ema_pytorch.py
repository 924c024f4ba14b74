"""Imports checkpoint folders of ema-pytorch's ``PostHocEMA`` (``<index>.<step>.pt``) as snapshots.

Note [what ema-pytorch tracks]
    Update j = 0, 1, ... happens at call ``m j + 1``, where m is ``update_every``, and keeps
    ``((m j + 1) / (m j + 2)) ** (gamma + 1)`` of the average. The weights of updates 0 to a thus
    have the share ``(G(a) / G(J)) ** (gamma + 1)`` in the average after update J, with
    ``G(a) = Gamma(a + 1 + 2/m) / Gamma(a + 1 + 1/m)``. For m = 1 this is exactly a power function
    with that gamma, on a clock that reads ``a + 2``. For m > 1 the decay of one call is applied
    only once every m calls: to second order in 1/a the share is

        ((a + 1/2 + 3/(2m)) / (J + 1/2 + 3/(2m))) ** ((gamma + 1) / m),

    a power function with the exponent ``(gamma + 1) / m - 1``, on a clock of ``m a + m/2 + 3/2``
    calls. Snapshots record that exponent and that clock, so that averages rebuilt from them are
    what they claim to be. A negative exponent means that the average never forgets its start. Such
    an average is not one of the power functions used here (gamma >= 0).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from edm2lite.atomic import replacing_folder
from edm2lite.claim import claim_file
from edm2lite.ema.formulas import gamma_to_sigma_rel, sigma_rel_to_gamma
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import write_snapshot
from edm2lite.ema.stream import Progress
from edm2lite.interop.torch_files import read_tensors

NAME = re.compile(r"(\d+)\.(\d+)\.pt")
_PREFIX = "ema_model."
_STORED = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Track:
    """A tracked average of a folder.

    Attributes:
        index: Number of the average in the file names.
        nominal_gamma: Exponent that ema-pytorch was given.
        gamma: Exponent of the profile that it really tracked; negative if it cannot be used.
        steps: Calls of ``update()`` at which it was saved, ascending.
        nimgs: End of the profile of each checkpoint, in images.

    Example:
        >>> track = Track(0, nominal_gamma=16.97, gamma=0.797, steps=(100,), nimgs=(115,))
        >>> round(track.sigma_rel, 3)
        0.246
    """

    index: int
    nominal_gamma: float
    gamma: float
    steps: tuple[int, ...]
    nimgs: tuple[int, ...]

    @property
    def sigma_rel(self) -> float:
        """EMA length that was really tracked."""
        return float(gamma_to_sigma_rel(self.gamma))


def import_folder(
    folder: str | Path,
    out: str | Path,
    *,
    update_every: int,
    sigma_rels: Sequence[float] | None = None,
    gammas: Sequence[float] | None = None,
    batch_size: int = 1,
    skip_unusable: bool = False,
    progress: Progress | None = None,
) -> list[Track]:
    """Convert the checkpoints of a folder, either all of them or, on an error, none.

    The files record neither the lengths nor ``update_every``: give what training used. Pickles are
    read by ``torch.load(weights_only=True)``, which builds tensors and executes nothing. In
    ema-pytorch, floating-point buffers are averaged too, and tensors in ``ignore_names`` are not.

    Args:
        folder: ``checkpoint_folder`` of ``PostHocEMA``.
        out: Folder for the run; the snapshots are written to ``out/snapshots``.
        update_every: The value given to ``PostHocEMA`` (its default is 100).
        sigma_rels: EMA lengths in the order in which ``PostHocEMA`` was given them.
        gammas: Exponents in that order, in place of ``sigma_rels``.
        batch_size: Images between two calls of ``update()``.
        skip_unusable: Whether to leave out averages that are not power functions, rather than to
            raise an error.
        progress: Called with the bytes read and the total after each file.

    Returns:
        All tracked averages of the folder, including those that were left out.

    Raises:
        FileNotFoundError: If the folder holds no such files.
        ValueError: If the settings do not fit the files, an average is not a power function, a
            file is damaged or holds more than tensors, ``out`` holds snapshots already, or another
            process writes them.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> for step in (10, 20):  # as PostHocEMA saves them
        ...     state = {"initted": torch.tensor(True), "step": torch.tensor(step)}
        ...     torch.save({**state, "ema_model.w": torch.ones(3)}, folder / f"0.{step}.pt")
        >>> (track,) = import_folder(folder, folder / "run", update_every=1, sigma_rels=[0.10])
        >>> track.steps, round(track.sigma_rel, 3)
        ((10, 20), 0.1)
    """
    files = _find(Path(folder))
    tracks = _tracks(files, _gammas(sigma_rels, gammas), update_every, batch_size)
    _check_usable(tracks, update_every, skip_unusable)
    target = Path(out) / "snapshots"
    with claim_file(target) as mine:
        if target.exists():
            raise ValueError(
                f"the result must go to a new folder, {target} exists; give another --out"
            )
        with replacing_folder(target) as partial:
            _convert(files, tracks, partial, update_every, batch_size, progress)
            mine.check()
    return tracks


def _check_usable(tracks: Sequence[Track], update_every: int, skip_unusable: bool) -> None:
    unusable = [track for track in tracks if track.gamma < 0]
    if len(unusable) == len(tracks) or (unusable and not skip_unusable):
        bad = ", ".join(f"{t.index} (gamma {t.nominal_gamma:.4g})" for t in unusable)
        raise ValueError(
            f"with update_every = {update_every} an average needs a gamma of at least"
            f" {update_every - 1} to be a power function, average {bad} has less; leave it out"
            " (--skip-unusable) if others remain"
        )


def _convert(
    files: Mapping[tuple[int, int], Path],
    tracks: Sequence[Track],
    folder: Path,
    update_every: int,
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Write the snapshots of all usable tracks."""
    todo = [
        (t, files[t.index, step], step, nimg)
        for t in tracks
        if t.gamma >= 0
        for step, nimg in zip(t.steps, t.nimgs, strict=True)
    ]
    run = "ema-pytorch-" + xxhash.xxh3_64_hexdigest(todo[0][1].read_bytes())
    total, done = sum(path.stat().st_size for _, path, _, _ in todo), 0
    shapes: dict[str, torch.Size] = {}
    for track, path, step, nimg in todo:
        tensors = _read(path, step)
        found = {name: value.shape for name, value in tensors.items()}
        shapes = shapes or found
        if found != shapes:
            raise ValueError(f"all files must hold the same tensors, {path} holds others")
        stride, later = update_every * batch_size, (step - 1) // update_every
        history = [(nimg - later * stride, 1), (stride, later)]
        write_snapshot(
            folder,
            tensors,
            run=run,
            profile=PowerFunction(track.gamma, nimg),
            sigma_rel=track.sigma_rel,
            history=[pair for pair in history if pair[1]],
            start_nimg=0,
            dtype=_dtype(tensors),
            extra={"source": f"ema-pytorch {path.name}"},
        )
        done += path.stat().st_size
        if progress is not None:
            progress(done, total)


def tracked_profile(
    gamma: float, step: int, update_every: int, batch_size: int
) -> tuple[float, int]:
    """The profile of an average that ema-pytorch saved; see Note [what ema-pytorch tracks].

    Args:
        gamma: Exponent that ema-pytorch was given.
        step: Calls of ``update()``, > 0.
        update_every: Calls between updates of the average.
        batch_size: Images between calls.

    Returns:
        Exponent, and end in images.

    Example:
        >>> tracked_profile(16.97, step=1000, update_every=1, batch_size=64)
        (16.97, 64064)
    """
    later = (step - 1) // update_every
    end = (update_every * later * 2 + update_every + 3) * batch_size // 2
    return (gamma + 1) / update_every - 1, end


def _find(folder: Path) -> dict[tuple[int, int], Path]:
    """(index, step) -> file, in ascending order."""
    files = {}
    for path in folder.glob("*.pt"):
        if match := NAME.fullmatch(path.name):
            files[int(match[1]), int(match[2])] = path
    if not files:
        raise FileNotFoundError(
            f"{folder} must hold the checkpoints of a PostHocEMA, named <index>.<step>.pt, and"
            " holds none; give its checkpoint_folder"
        )
    return dict(sorted(files.items()))


def _gammas(sigma_rels: Sequence[float] | None, gammas: Sequence[float] | None) -> list[float]:
    if (sigma_rels is None) == (gammas is None):
        raise ValueError("give the tracked lengths as either sigma_rel or gamma, one of them")
    if sigma_rels is not None:
        return [float(sigma_rel_to_gamma(s)) for s in sigma_rels]
    return [PowerFunction(float(g), 1).gamma for g in gammas or ()]


def _tracks(
    files: dict[tuple[int, int], Path], gammas: list[float], update_every: int, batch_size: int
) -> list[Track]:
    indices = sorted({index for index, _ in files})
    if indices != list(range(len(gammas))):
        raise ValueError(
            f"every average needs one length, the folder holds averages {indices} and the number"
            f" of lengths is {len(gammas)}; give them in the order of training"
        )
    if update_every < 1 or batch_size < 1 or min(step for _, step in files) < 1:
        raise ValueError(
            "update_every, batch_size and the steps in file names must be at least 1, got"
            f" {update_every}, {batch_size} and {min(step for _, step in files)}"
        )
    tracks = []
    for index, nominal in enumerate(gammas):
        steps = [step for i, step in files if i == index]
        ends = [tracked_profile(nominal, step, update_every, batch_size)[1] for step in steps]
        gamma = tracked_profile(nominal, 1, update_every, batch_size)[0]
        new = [k for k, end in enumerate(ends) if end not in ends[:k]]
        tracks.append(
            Track(
                index,
                nominal,
                0.0 if abs(gamma) < 1e-9 else gamma,
                tuple(steps[k] for k in new),
                tuple(ends[k] for k in new),
            )
        )
    return tracks


def _read(path: Path, step: int) -> dict[str, Tensor]:
    """Tensors of the averaged model, under the names of its state dict."""
    state = read_tensors(path)
    bookkeeping = {"step", "initted"} & state.keys()
    names = [name for name in state if name not in bookkeeping]
    if len(bookkeeping) < 2 or not names or not all(name.startswith(_PREFIX) for name in names):
        raise ValueError(
            f"{path} must be the state of a KarrasEMA, and is not; move it out of the folder"
        )
    # The state was cast: in float16 a step above 65504 is infinite. The name has it exactly.
    if state["step"].tolist() != torch.tensor(step).to(state["step"].dtype).tolist():
        raise ValueError(
            f"{path} must be of the step in its name, and is of {state['step'].tolist()}; it was"
            " renamed or copied from elsewhere, so move it out of the folder"
        )
    return {name.removeprefix(_PREFIX): _restored(name, state[name]) for name in names}


def _restored(name: str, value: Tensor) -> Tensor:
    """The value, with BatchNorm's counter as the integer that it was before the state was cast."""
    counter = name.endswith("num_batches_tracked")
    return torch.nan_to_num(value.double(), posinf=0).to(torch.int64) if counter else value


def _dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    first = next((v.dtype for v in tensors.values() if v.is_floating_point()), None)
    return first if first in _STORED else torch.float32
