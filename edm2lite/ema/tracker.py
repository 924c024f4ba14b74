"""Running power-function averages of the tensors of any model, as it is trained."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2lite.ema.averages import Averages
from edm2lite.ema.clocks import checked_clock, clock_metadata, later_count
from edm2lite.ema.course import Course
from edm2lite.ema.lengths import widths_and_exponents
from edm2lite.ema.model_tensors import Source, TrackedTensors, saved_averages
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.shards import is_first_rank, local_shard, sharded_like, warn_if_ranks_differ
from edm2lite.ema.writer import SnapshotSaver


class PowerFunctionEMA:
    """Averages of a model's parameters under one or more power-function profiles (Eq. 1).

    Call :meth:`update` after each optimizer step and :meth:`save_snapshots` from time to time.
    After ``update(nimg)`` each average is ``sum_k p_k theta_k`` over the updates k so far, where
    ``p_k = (n_k / n)**(gamma+1) - (n_{k-1} / n)**(gamma+1)`` and n_k is the image count of update k
    (Eq. 127, with weights that are constant between updates). The initial weights have no mass.

    Trained parameters are averaged in ``dtype`` whatever their own dtype, and tied ones once.
    Buffers and frozen parameters are copied as they are when a snapshot is written. The prefixes
    that wrappers (DDP, FSDP, torch.compile) add to names are removed.

    Sharded parameters (FSDP2, DTensor) are averaged where they are. Updates communicate nothing, so
    each rank refuses an update that is not finite for its own shards alone. Snapshots and
    checkpoints record the updates of rank 0, and saving a snapshot warns if ranks differ.

    Args:
        source: A module, or a mapping of names to tensors.
        sigma_rels: EMA lengths, each in (0, 0.2887). [default: 0.05 and 0.10]
        gammas: Exponents, in place of ``sigma_rels``.
        uniform: Whether to track gamma = 0 too, which makes the mean between snapshots exact.
        clock: What ``nimg`` counts: ``images``, ``tokens`` or ``steps``; recorded in snapshots.
        start_nimg: Images that count as seen before averaging begins (a late start, or fine-tuning
            with the clock of the pre-training). The current weights take the mass of that time.
        device: Device of the averages [default: that of the first tensor]. For a model on a GPU,
            ``"cpu"`` takes no GPU memory: weights are copied and averaged in the background.
        buffered: False averages them at once, in parts, without a copy of the weights on the host.
        dtype: Type of the averages, float32 or float64.
        run: Identifier stored in every snapshot. [default: a random one]
        folder: Folder that snapshots are saved in. It is examined at once, as by :meth:`claim`.
        state: Result of :meth:`state_dict` to continue from, as by :meth:`load_state_dict`.

    Raises:
        ValueError: If the lengths, ``dtype`` or ``start_nimg`` are out of range, there is nothing
            to average, ``state`` does not fit, or ``folder`` holds snapshots of another run.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> ema = PowerFunctionEMA(model, sigma_rels=(0.05, 0.10))
        >>> for step in range(1, 4):
        ...     _ = model.weight.data.fill_(step)  # stands for an optimizer step
        ...     ema.update(nimg=64 * step)
        >>> ema.state_dict_of(0.10)["weight"][0, 0] < 3
        tensor(True)
    """

    def __init__(
        self,
        source: Source,
        sigma_rels: Sequence[float] | None = None,
        *,
        gammas: Sequence[float] | None = None,
        uniform: bool = False,
        clock: str = "images",
        start_nimg: int = 0,
        device: torch.device | str | None = None,
        buffered: bool | None = None,
        dtype: torch.dtype = torch.float32,
        run: str | None = None,
        folder: str | Path | None = None,
        state: Mapping[str, Any] | None = None,
    ):
        self.sigma_rels, self.gammas = widths_and_exponents(sigma_rels, gammas, uniform)
        self.clock = checked_clock(clock)
        self.start_nimg, self._last_nimg = start_nimg, start_nimg
        self.run = run or secrets.token_hex(4)
        self._tracked = TrackedTensors(source)
        shards = [local_shard(t) for t in self._tracked.live().values()]
        place = shards[0].device if device is None else torch.device(device)
        self._averages = Averages(
            shards, self.gammas, start_nimg=start_nimg, device=place, dtype=dtype, buffered=buffered
        )
        self._saver, self._is_applied, self._begin_nimg = SnapshotSaver(), False, start_nimg
        if state is not None:
            self.load_state_dict(state)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None and is_first_rank():
            self.claim(self.folder)

    def __repr__(self) -> str:
        what = f"sigma_rels={self.sigma_rels}, nimg={self._last_nimg}, run={self.run!r}"
        return f"PowerFunctionEMA({what}, {len(self._tracked.shapes)} tensors)"

    @property
    def nimg(self) -> int:
        """Image count of the last update that was taken. Reading it waits for the device."""
        return self._averages.settle().nimg

    @property
    def history(self) -> list[list[int]]:
        """Strides of the updates taken, ``[[stride, updates], ...]``. Waits for the device."""
        return [list(pair) for pair in self._averages.settle().history]

    @property
    def num_refused(self) -> int:
        """Number of updates refused because they were not finite. Waits for the device."""
        return self._averages.settle().num_refused

    @torch.no_grad()
    def update(self, nimg: int, source: Source | None = None) -> None:
        """Take the current weights into every average.

        An update with a NaN or infinity in any trained tensor is refused: it is counted in
        ``num_refused`` and logged, and the next update covers its stride. On CUDA this does not
        wait for the device, and the log message appears when the count or the history is read.

        Args:
            nimg: Exact number of images seen, this step included; it must grow from call to call.
            source: Where the weights are now. [default: the source given at construction]

        Raises:
            ValueError: If ``nimg`` is not a larger whole number, or other tensors are given.
            RuntimeError: Within :meth:`applied`.
        """
        nimg = later_count(nimg, self._last_nimg)
        if self._is_applied:
            raise RuntimeError("update() must come after applied(), the weights are averages now")
        shards = [local_shard(t) for t in self._tracked.live(source).values()]
        with self._saver.lock:
            self._averages.update(shards, nimg)
            self._last_nimg = nimg

    def state_dict_of(self, sigma_rel: float) -> dict[str, Tensor]:
        """The state dict of the model, with averages in place of the trained parameters.

        The values are live: the next update changes them. Those of a sharded model are sharded.

        Raises:
            ValueError: If ``sigma_rel`` is not one of the tracked lengths.
        """
        average, owner = self._average(sigma_rel), self._tracked.owner
        return {
            name: average[owner[name]] if name in owner else value
            for name, value in self._tracked.all().items()
        }

    @contextmanager
    def applied(self, sigma_rel: float) -> Iterator[None]:
        """Let the model hold a tracked average within the block, and its own weights afterwards."""
        own_weights = {name: local_shard(t).clone() for name, t in self._tracked.live().items()}
        outer, self._is_applied = self._is_applied, True
        try:
            self._write_live(self._average(sigma_rel))
            yield
        finally:
            self._is_applied = outer
            self._write_live(own_weights)

    def claim(self, folder: str | Path) -> None:
        """Make a folder ready for the snapshots of this run, before any work is done.

        Snapshots in it that are later than this moment, of a course that was given up, are moved to
        ``superseded/``; those of this course that were moved there before come back. The first
        :meth:`save_snapshots` does the same. The folder is this process's until :meth:`release`.

        Args:
            folder: Folder of the snapshots. It is created if missing.

        Raises:
            ValueError: If it holds snapshots of another run, or another process writes to it.
        """
        self._saver.claim(Path(folder), self._course(), self._begin_nimg)

    def save_snapshots(
        self,
        folder: str | Path | None = None,
        dtype: torch.dtype = torch.float32,
        extra: Mapping[str, str] | None = None,
        *,
        background: bool = False,
    ) -> list[Path]:
        """Write every average to a file; see :mod:`edm2lite.ema.snapshot` for the format.

        Every rank of a sharded model must call this; rank 0 gathers and writes.

        Args:
            folder: Folder of the snapshots. [default: the one that was given at construction]
            dtype: Stored floating-point type: float32, float16 or bfloat16.
            extra: Further metadata, such as a description of the model (``model``, JSON).
            background: Whether to copy to host memory and return while a thread writes. Errors of
                the thread are raised by the next call, or by :meth:`flush`, which waits for it.

        Returns:
            The files, one for each average.

        Raises:
            ValueError: If no update has been made, there is no folder, it holds snapshots of
                another run, another process writes to it, or a value is not finite in ``dtype``.
            OSError: If a file cannot be written. No part of it is left; make room, call again.
        """
        folder = self.folder if folder is None else folder
        if folder is None:
            raise ValueError("save_snapshots() needs a folder, here or at construction; got none")
        if not self.history:
            raise ValueError("a snapshot needs at least one update; call update(nimg) first")
        warn_if_ranks_differ(self.num_refused, self._tracked.live().values())
        with self._saver.lock:
            return self._saver.save(
                Path(folder),
                (
                    (sigma_rel, PowerFunction(gamma, self.nimg), self.state_dict_of(sigma_rel))
                    for gamma, sigma_rel in zip(self.gammas, self.sigma_rels, strict=True)
                ),
                course=self._course(),
                begin=self._begin_nimg,
                dtype=dtype,
                extra={**(extra or {}), **clock_metadata(self.clock)},
                background=background,
            )

    def flush(self) -> None:
        """Wait for the files of ``save_snapshots(background=True)`` and raise any error."""
        self._saver.writer.flush()

    def release(self) -> None:
        """Let other processes write to the folders, once no thread of this one does."""
        self._begin_nimg = self._last_nimg
        self._saver.release()

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """All that is needed to continue exactly: the averages (live) and the clock."""
        return {
            "averages": {repr(s): self._average(s) for s in self.sigma_rels},
            "clock": {
                "nimg": self.nimg,
                "start_nimg": self.start_nimg,
                "history": self.history,
                "num_refused": self.num_refused,
                "run": self.run,
                **clock_metadata(self.clock),
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the result of :meth:`state_dict`.

        Raises:
            ValueError: If ``state`` is not one of such a tracker; nothing changes.
        """
        names = list(self._tracked.live())
        views = {
            repr(sigma_rel): dict(zip(names, self._averages.views(i, to_replace=True), strict=True))
            for i, sigma_rel in enumerate(self.sigma_rels)
        }
        for view, saved in saved_averages(views, state, self.clock):
            view.copy_(saved)
        clock = state["clock"]
        self._averages.set_clock(
            nimg=clock["nimg"], history=clock["history"], num_refused=clock["num_refused"]
        )
        self.start_nimg, self._last_nimg, self.run = clock["start_nimg"], self.nimg, clock["run"]
        self._begin_nimg = self.nimg
        self._saver.forget()

    def _course(self) -> Course:
        return Course(self.run, self.start_nimg, self.history, self.gammas)

    def _average(self, sigma_rel: float) -> dict[str, Tensor]:
        if sigma_rel not in self.sigma_rels:
            raise ValueError(f"sigma_rel must be one of {self.sigma_rels}, got {sigma_rel}")
        views = self._averages.views(self.sigma_rels.index(sigma_rel))
        live = self._tracked.live()
        return {n: sharded_like(v, t) for (n, t), v in zip(live.items(), views, strict=True)}

    @torch.no_grad()
    def _write_live(self, values: Mapping[str, Tensor]) -> None:
        # live() asks the module for its state dict, at which FSDP2 drops gathered copies
        for name, tensor in self._tracked.live().items():
            local_shard(tensor).copy_(local_shard(values[name]))
