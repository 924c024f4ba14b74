"""Folders of ema-pytorch's ``PostHocEMA`` (``<index>.<step>.pt``) as snapshots of ours.

Note [what ema-pytorch tracks]
    Its update j = 0, 1, ... comes at call ``m j + 1``, where m is ``update_every``, and keeps
    ``((m j + 1) / (m j + 2)) ** (gamma + 1)`` of the average. The weights of updates 0 to a so have
    the share ``(G(a) / G(J)) ** (gamma + 1)`` of the average after update J, with
    ``G(a) = Gamma(a + 1 + 2/m) / Gamma(a + 1 + 1/m)``. For m = 1 this is exactly a power function
    with that gamma on a clock that reads ``a + 2``. For m > 1 the decay of one call is applied once
    every m calls: to second order in 1/a the share is

        ((a + 1/2 + 3/(2m)) / (J + 1/2 + 3/(2m))) ** ((gamma + 1) / m),

    a power function with the exponent ``(gamma + 1) / m - 1`` on a clock of
    ``m a + m/2 + 3/2`` calls. That exponent and that clock are what the snapshots record, so that
    averages rebuilt from them are what they say. A negative exponent means an average that never
    forgets its start: no power function of ours.
"""

from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from edm2lite.ema.formulas import gamma_to_sigma_rel, sigma_rel_to_gamma
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import write_snapshot
from edm2lite.ema.stream import Progress

NAME = re.compile(r"(\d+)\.(\d+)\.pt")
_PREFIX = "ema_model."
_STORED = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Track:
    """One tracked average of a folder.

    Attributes:
        index: Its number in the file names.
        nominal_gamma: The exponent that ema-pytorch was given.
        gamma: The exponent of the profile that it tracked; negative if unusable.
        steps: Calls of ``update()`` at which it was saved, ascending.
        nimgs: Where the profile of each ends, in images.
    """

    index: int
    nominal_gamma: float
    gamma: float
    steps: tuple[int, ...]
    nimgs: tuple[int, ...]

    @property
    def sigma_rel(self) -> float:
        """Relative width that was really tracked."""
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
    """Convert a folder; either all of it is there afterwards, in ``out/snapshots``, or nothing.

    Nothing in the files tells the lengths or ``update_every``: give what training used. Pickles are
    read by ``torch.load(weights_only=True)``, which builds tensors and executes nothing. Floating-
    point buffers are averages there too; tensors named in its ``ignore_names`` never moved.

    Args:
        folder: ``checkpoint_folder`` of ``PostHocEMA``.
        out: Folder for the run.
        update_every: As given to ``PostHocEMA`` (its default is 100).
        sigma_rels: Widths in the order in which ``PostHocEMA`` was given them.
        gammas: Exponents, in place of widths.
        batch_size: Images between two calls of ``update()``.
        skip_unusable: Leave out averages that are not power functions, in place of an error.
        progress: Called with (bytes read, bytes in all) after each file.

    Returns:
        All tracks of the folder, those left out included.

    Raises:
        FileNotFoundError: No such files.
        ValueError: Settings that do not fit the files, unusable averages, damaged files, pickles
            that hold more than tensors, or ``out`` is taken.
    """
    files = _find(Path(folder))
    tracks = _tracks(files, _gammas(sigma_rels, gammas), update_every, batch_size)
    _check_usable(tracks, update_every, skip_unusable)
    target = Path(out) / "snapshots"
    if target.exists():
        raise ValueError(f"the result must go to a new folder, {target} exists; give another --out")
    partial = target.with_name("snapshots.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        _convert(files, tracks, partial, update_every, batch_size, progress)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return tracks


def _check_usable(tracks: Sequence[Track], update_every: int, skip_unusable: bool) -> None:
    unusable = [track for track in tracks if track.gamma < 0]
    if len(unusable) == len(tracks) or (unusable and not skip_unusable):
        named = ", ".join(f"{t.index} (gamma {t.nominal_gamma:.4g})" for t in unusable)
        raise ValueError(
            f"with update_every = {update_every} an average needs a gamma of at least"
            f" {update_every - 1} to be a power function, average {named} has less; leave it out"
            " (--skip-unusable) if others are left"
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
    """(exponent, end in images) of an average that ema-pytorch saved; see the note above.

    Args:
        gamma: The exponent that it was given.
        step: Calls of ``update()``, > 0.
        update_every: Calls between updates of the average.
        batch_size: Images between calls.
    """
    later = (step - 1) // update_every
    end = (update_every * later * 2 + update_every + 3) * batch_size // 2
    return (gamma + 1) / update_every - 1, end


def _find(folder: Path) -> dict[tuple[int, int], Path]:
    """(index, step) -> file, in that order."""
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
        raise ValueError("give the lengths that were tracked as either sigma_rel or gamma")
    if sigma_rels is not None:
        return [float(sigma_rel_to_gamma(s)) for s in sigma_rels]
    return [PowerFunction(float(g), 1).gamma for g in gammas or ()]


def _tracks(
    files: dict[tuple[int, int], Path], gammas: list[float], update_every: int, batch_size: int
) -> list[Track]:
    indices = sorted({index for index, _ in files})
    if indices != list(range(len(gammas))):
        raise ValueError(
            f"one length is needed for each average, the folder holds averages {indices} and"
            f" {len(gammas)} lengths were given; give them in the order of training"
        )
    if update_every < 1 or batch_size < 1 or min(step for _, step in files) < 1:
        raise ValueError("update_every, batch_size and the steps in file names must be at least 1")
    tracks = []
    for index, nominal in enumerate(gammas):
        steps = [step for i, step in files if i == index]
        ends = [tracked_profile(nominal, step, update_every, batch_size)[1] for step in steps]
        gamma = tracked_profile(nominal, 1, update_every, batch_size)[0]
        fresh = [k for k, end in enumerate(ends) if end not in ends[:k]]  # no update in between
        tracks.append(
            Track(
                index,
                nominal,
                0.0 if abs(gamma) < 1e-9 else gamma,
                tuple(steps[k] for k in fresh),
                tuple(ends[k] for k in fresh),
            )
        )
    return tracks


def _read(path: Path, step: int) -> dict[str, Tensor]:
    """Tensors of the averaged model, names as in its state dict."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} must be a whole file of tensors and is damaged or holds other objects, which"
            " are not loaded; leave it out of the folder"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path} must hold a mapping of names to tensors and does not")
    own = {"step", "initted"} & state.keys()
    names = [name for name in state if name not in own]
    if len(own) < 2 or not names or not all(name.startswith(_PREFIX) for name in names):
        raise ValueError(f"{path} must be the state of a KarrasEMA and is not")
    # The whole state was cast: a step above 65504 is infinite as float16. The name has it exactly.
    if not state["step"].equal(torch.tensor(step).to(state["step"].dtype)):
        raise ValueError(
            f"{path} must be of the step in its name and says {state['step'].item():g}; it was"
            " renamed or copied from elsewhere"
        )
    return {name.removeprefix(_PREFIX): _restored(name, state[name]) for name in names}


def _restored(name: str, value: Tensor) -> Tensor:
    """BatchNorm's counter, which the cast made a float (and infinite above 65504), as it was."""
    counter = name.endswith("num_batches_tracked")
    return torch.nan_to_num(value.double(), posinf=0).to(torch.int64) if counter else value


def _dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    first = next((v.dtype for v in tensors.values() if v.is_floating_point()), None)
    return first if first in _STORED else torch.float32
