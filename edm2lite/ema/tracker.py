"""PowerFunctionEMA: running power-function averages of the tensors of any model.

Call :meth:`PowerFunctionEMA.update` after each optimizer step with the number of images seen so
far, and :meth:`PowerFunctionEMA.save_snapshots` now and then. The averages then follow the exact
profile of Eq. 1 for any stride, and any other length can be rebuilt from the files afterwards.
"""

from __future__ import annotations

import logging
import operator
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2lite.ema.averages import Averages
from edm2lite.ema.profile import PowerFunction, gamma_to_sigma_rel, sigma_rel_to_gamma
from edm2lite.ema.snapshot import snapshot_path
from edm2lite.ema.source import Source, Tracked, as_part_of, check_names, local, over_ranks
from edm2lite.ema.writer import SnapshotSaver

logger = logging.getLogger(__name__)


class PowerFunctionEMA:
    """Averages of a model's parameters under one or more power-function profiles.

    After ``update(nimg)`` each average is ``sum_k p_k theta_k`` over the updates k so far, where
    ``p_k = (n_k / n)**(gamma+1) - (n_{k-1} / n)**(gamma+1)`` and n_k is the image count of update k
    (Eq. 127 with the weights held still between updates). The initial weights have no mass.

    Parameters that train are averaged in ``dtype`` whatever their own dtype, tied ones once;
    buffers and frozen parameters are copied as they are when a snapshot is written. Wrappers (DDP,
    FSDP, torch.compile) are looked through, and leave no trace in the names.

    Sharded parameters (FSDP2, DTensor) are averaged where they are: updates communicate nothing, so
    each rank judges its own shards. Where only some ranks refuse an update, their shards skip it
    and the others do not; each shard's average stays exact for the updates that it took. Snapshots
    and checkpoints record those of rank 0, and saving a snapshot warns of a difference.

    Args:
        source: A module, or a mapping of names to tensors.
        sigma_rels: Relative widths, each in (0, 0.2887). [default: 0.05 and 0.10]
        gammas: Exponents, in place of ``sigma_rels``.
        start_nimg: Images that count as seen before averaging begins. With a value above 0 (late
            start, or fine-tuning with the clock of the pre-training) the current weights take the
            mass of all time before it. Recorded in every snapshot.
        device: Where the averages are kept. For a model on a GPU "cpu" takes no GPU memory: the
            weights are copied there in the background and averaged at the next call.
            [default: where the first tensor is]
        dtype: Of the averages, float32 or float64.
        run: Identifier stored in every snapshot. [default: a random one]

    Raises:
        ValueError: Unusable lengths, dtype or clock, or nothing to average.
    """

    def __init__(
        self,
        source: Source,
        sigma_rels: Sequence[float] | None = None,
        *,
        gammas: Sequence[float] | None = None,
        start_nimg: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
        run: str | None = None,
    ):
        if sigma_rels is not None and gammas is not None:
            raise ValueError("give either sigma_rels or gammas, not both")
        if gammas is None:
            self.sigma_rels = tuple(map(float, (0.05, 0.10) if sigma_rels is None else sigma_rels))
            self.gammas = tuple(float(sigma_rel_to_gamma(s)) for s in self.sigma_rels)
        else:
            self.gammas = tuple(map(float, gammas))
            self.sigma_rels = tuple(float(gamma_to_sigma_rel(g)) for g in self.gammas)
        names = [snapshot_path(Path(), s, 0) for s in self.sigma_rels]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                "lengths must be distinct to 5 decimals of sigma_rel and at least one, got"
                f" {self.sigma_rels}"
            )
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype of the averages must be float32 or float64, got {dtype}; late updates move"
                " an average by 1e-5 of a difference, which half precision rounds away"
            )
        if start_nimg < 0:
            raise ValueError(f"start_nimg must be an image count of at least 0, got {start_nimg}")
        self.start_nimg, self._last_nimg = start_nimg, start_nimg
        self.run = run or secrets.token_hex(4)
        self._tracked = Tracked(source)
        live = self._tracked.live()
        parts = [local(t) for t in live.values()]
        self._averages = Averages(
            parts,
            self.gammas,
            start_nimg=start_nimg,
            device=parts[0].device if device is None else torch.device(device),
            dtype=dtype,
        )
        self._saver = SnapshotSaver()
        self._is_applied = False

    @property
    def nimg(self) -> int:
        """Image count of the last update that was taken. Waits for the device."""
        return self._settled().nimg

    @property
    def history(self) -> list[list[int]]:
        """Strides really seen, ``[[stride, updates], ...]``. Waits for the device."""
        return self._settled().history

    @property
    def num_refused(self) -> int:
        """Updates refused because they were not finite. Waits for the device."""
        return self._settled().num_refused

    @torch.no_grad()
    def update(self, nimg: int, source: Source | None = None) -> None:
        """Take the current weights into every average; ``nimg`` images have been seen by now.

        An update with a NaN or infinity in any trained tensor is refused: counted in
        ``num_refused``, logged, and the next update covers its stride. On CUDA nothing waits for
        the device, and the log follows when the count or the history is read.

        Args:
            nimg: Exact image count after the optimizer step, larger than at the last call.
            source: Where the weights are now. [default: the source given at construction]

        Raises:
            ValueError: The clock did not advance, or the tensors are not the ones tracked.
            RuntimeError: Called within :meth:`applied`.
        """
        nimg = operator.index(nimg)
        if nimg <= self._last_nimg:
            raise ValueError(
                f"nimg must grow from update to update, got {nimg} after {self._last_nimg}; count"
                " the images of the step before the call"
            )
        if self._is_applied:
            raise RuntimeError("update() must come after applied(), the weights are averages now")
        parts = [local(t) for t in self._tracked.live(source).values()]
        self._averages.update(parts, nimg)
        self._last_nimg = nimg

    def state_dict_of(self, sigma_rel: float) -> dict[str, Tensor]:
        """The whole state dict with averaged parameters in place of the trained ones.

        The values are live: the next update changes them. Those of a sharded model are sharded.

        Raises:
            ValueError: ``sigma_rel`` is not one of the tracked lengths.
        """
        average, owner = self._average(sigma_rel), self._tracked.owner
        return {
            name: average[owner[name]] if name in owner else value
            for name, value in self._tracked.all().items()
        }

    @contextmanager
    def applied(self, sigma_rel: float) -> Iterator[None]:
        """Within the block the source's tensors hold the average; afterwards exactly their own."""
        own = {name: local(t).clone() for name, t in self._tracked.live().items()}
        outer, self._is_applied = self._is_applied, True
        try:
            self._write_live(self._average(sigma_rel))
            yield
        finally:
            self._write_live(own)
            self._is_applied = outer

    def save_snapshots(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        extra: Mapping[str, str] | None = None,
        *,
        background: bool = False,
    ) -> list[Path]:
        """Write every average to ``folder``; see :mod:`edm2lite.ema.snapshot` for the format.

        Every rank of a sharded model must call this; rank 0 gathers and writes.

        Args:
            folder: Made if missing.
            dtype: float32, float16 or bfloat16, of the stored values.
            extra: Further metadata: ``model`` (JSON) and the like.
            background: Copy to host memory and return while a thread writes. Its errors are raised
                by the next call of this, or of :meth:`flush`, which also waits for the files.

        Returns:
            The files, one for each average.

        Raises:
            ValueError: No update has been made, ``folder`` holds snapshots of another run, or a
                value is not finite in ``dtype``.
            OSError: A file could not be written; nothing has its name. Call again, with more room.
        """
        if not self.history:
            raise ValueError("a snapshot needs at least one update; call update(nimg) first")
        counts = over_ranks(self.num_refused, self._tracked.live().values())
        if len(set(counts)) > 1:
            logger.warning(
                "ranks refused different numbers of EMA updates, %s: history is rank 0's", counts
            )
        return self._saver.save(
            Path(folder),
            (
                (sigma_rel, PowerFunction(gamma, self.nimg), self.state_dict_of(sigma_rel))
                for gamma, sigma_rel in zip(self.gammas, self.sigma_rels, strict=True)
            ),
            run=self.run,
            history=[(s, n) for s, n in self.history],
            start_nimg=self.start_nimg,
            dtype=dtype,
            extra=dict(extra or {}),
            background=background,
        )

    def flush(self) -> None:
        """Wait for the files of ``save_snapshots(background=True)``; raises what went wrong."""
        self._saver.writer.flush()

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly: averages (live) and clock."""
        return {
            "averages": {repr(s): self._average(s) for s in self.sigma_rels},
            "clock": {
                "nimg": self.nimg,
                "start_nimg": self.start_nimg,
                "history": [list(pair) for pair in self.history],
                "num_refused": self.num_refused,
                "run": self.run,
            },
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: It tracks other lengths or other tensors. Nothing has changed then.
        """
        wanted = [repr(s) for s in self.sigma_rels]
        if sorted(state["averages"]) != sorted(wanted):
            raise ValueError(
                f"saved averages must have lengths {wanted}, found {sorted(state['averages'])}"
            )
        names = list(self._tracked.live())
        copies = []
        for i, key in enumerate(wanted):
            check_names(names, state["averages"][key])
            for name, view in zip(names, self._averages.views(i), strict=True):
                saved = local(state["averages"][key][name])
                if saved.shape != view.shape:
                    raise ValueError(
                        f"saved average of {name} must have the shape {tuple(view.shape)}, it has"
                        f" {tuple(saved.shape)}; load a checkpoint of this model"
                    )
                copies.append((view, saved))
        for view, saved in copies:
            view.copy_(saved)
        clock = state["clock"]
        self._averages.set_clock(
            nimg=clock["nimg"],
            history=[list(pair) for pair in clock["history"]],
            num_refused=clock["num_refused"],
        )
        self.start_nimg, self._last_nimg, self.run = clock["start_nimg"], self.nimg, clock["run"]

    def _average(self, sigma_rel: float) -> dict[str, Tensor]:
        if sigma_rel not in self.sigma_rels:
            raise ValueError(f"sigma_rel must be one of {self.sigma_rels}, got {sigma_rel}")
        views = self._averages.views(self.sigma_rels.index(sigma_rel))
        live = self._tracked.live()
        return {n: as_part_of(v, t) for (n, t), v in zip(live.items(), views, strict=True)}

    def _settled(self) -> Averages:
        self._averages.settle()
        return self._averages

    @torch.no_grad()
    def _write_live(self, values: Mapping[str, Tensor]) -> None:
        # live() asks the module for its state dict, at which FSDP2 drops gathered copies
        for name, tensor in self._tracked.live().items():
            local(tensor).copy_(local(values[name]))
