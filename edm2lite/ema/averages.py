"""The arithmetic of tracking: running averages of a list of tensors, without waiting for a GPU.

Note [the decision stays on the device]: whether an update is finite is known on the device first,
and reading the answer would stall the queue. On CUDA the answer, here called the verdict, therefore
remains a tensor. If it is false, no average changes, and the clock from which the next weight is
computed does not advance. The host learns of refused updates when it reads the history. On a CPU
reading the verdict costs nothing, and a refused update returns at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from edm2lite.ema.host_buffer import HostBuffer
from edm2lite.ema.tensor_lists import are_alike, grouped, lerp_all_, row_like, views_like

logger = logging.getLogger(__name__)

_ALONE = 2**16  # smaller tensors are averaged in groups, with one operation for many
_CHUNK = {"cpu": 2**21, "cuda": 2**22}  # elements that stay in cache while every average is updated
_FOLD = 1024  # verdicts kept as scalars, of 512 bytes each on CUDA, before they are packed


class Averages:
    """Power-function averages of a list of tensors under several exponents (Eq. 127).

    Attributes:
        nimg: Image count of the last update that was taken, as of the last :meth:`settle`.
        history: Run-length list ``[[stride, updates], ...]`` of the updates that were taken.
        num_refused: Number of updates refused because they held a NaN or infinity.

    Args:
        tensors: Initial values. Their shapes are kept, not their memory.
        gammas: Exponents; there is one average for each.
        start_nimg: Images that count as seen before; the initial values hold their mass.
        device: Device of the averages.
        dtype: Type of the averages.
        deferred: Whether refusals are decided on the device; see Note [the decision stays on the
            device]. [default: on CUDA]
        buffered: Whether the weights of an update are first copied to the host and averaged at the
            next call, so that the update does not wait for the copy. [default: if the averages are
            on the host and the weights on CUDA]

    Example:
        >>> where = {"device": torch.device("cpu"), "dtype": torch.float64}
        >>> averages = Averages([torch.zeros(1)], [0.0], start_nimg=0, **where)  # plain mean
        >>> for nimg, value in ((10, 1.0), (20, 3.0)):
        ...     averages.update([torch.full((1,), value)], nimg)
        >>> averages.views(0)
        [tensor([2.], dtype=torch.float64)]
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        gammas: Sequence[float],
        *,
        start_nimg: int,
        device: torch.device,
        dtype: torch.dtype,
        deferred: bool | None = None,
        buffered: bool | None = None,
    ):
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"dtype of the averages must be float32 or float64, got {dtype}; late updates move"
                " an average by 1e-5 of a difference, which half precision rounds away"
            )
        if start_nimg < 0:
            raise ValueError(f"start_nimg must be an image count of at least 0, got {start_nimg}")
        self.device = device
        self.deferred = device.type == "cuda" if deferred is None else deferred
        if buffered is None:
            buffered = device.type == "cpu" and any(t.is_cuda for t in tensors)
        self._is_buffered = buffered
        self._buffer: HostBuffer | None = None
        self._is_torn = False
        self._clock_device = device if self.deferred else torch.device("cpu")
        self._powers = torch.tensor(gammas, dtype=torch.float64, device=self._clock_device) + 1
        self._chunk = _CHUNK.get(device.type, _CHUNK["cuda"])
        self._groups = grouped(tensors, self._chunk if self.deferred else _ALONE, self._chunk)
        num = sum(t.numel() for t in tensors)
        self._flat = torch.empty(len(gammas), num, dtype=dtype, device=device)
        self._layout = [torch.empty(t.shape, device="meta") for t in tensors]
        if self.deferred:
            self._layout = [torch.empty_like(t, device="meta") for t in tensors]
        self._views = self._views_of_flat()
        if not self._all_in_range(tensors):
            raise ValueError(
                "weights must be finite when averaging begins, found NaN, infinity or numbers too"
                f" large for {dtype}; load or initialize them before the tracker is made"
            )
        for views in self._views:
            for view, tensor in zip(views, tensors, strict=True):
                view.copy_(tensor)
        self.set_clock(nimg=start_nimg, history=[], num_refused=0)

    def _views_of_flat(self) -> list[list[Tensor]]:
        """Every average as views of its memory, in the order of the tensors and laid out alike."""
        order = [i for group in self._groups for i in group]
        found = []
        for flat in self._flat:
            views = dict(
                zip(order, views_like(flat, [self._layout[i] for i in order]), strict=True)
            )
            found.append([views[i] for i in range(len(order))])
        return found

    def __getstate__(self) -> dict[str, Any]:  # for copies and pickles, which would part the views
        self.settle()
        return {k: v for k, v in self.__dict__.items() if k not in ("_views", "_buffer")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _buffer=None)
        self._views = self._views_of_flat()

    def views(self, index: int, *, to_replace: bool = False) -> list[Tensor]:
        """The averages under exponent ``index``, in the order and shapes of the tensors.

        They are live: the next update changes them.

        Args:
            index: Number of the exponent.
            to_replace: Whether the caller is about to give all of them other values.

        Raises:
            RuntimeError: If an update was interrupted, unless they are to be replaced.
        """
        if not to_replace:
            self._take_buffered()
            self._refuse_torn()
        return self._views[index]

    def _refuse_torn(self) -> None:
        if self._is_torn:
            raise RuntimeError(
                "an update of the averages was interrupted, and some hold it while others do not;"
                " continue from a checkpoint (load_state_dict)"
            )

    def set_clock(self, *, nimg: int, history: Sequence[Sequence[int]], num_refused: int) -> None:
        """Set the clock and the record of updates, to continue from a checkpoint."""
        self._is_torn = False
        self.nimg, self.num_refused = nimg, num_refused
        self.history = [list(pair) for pair in history]
        self._buffered_nimg: int | None = None  # image count of the weights in the buffer
        self._taken = torch.tensor(nimg, dtype=torch.float64, device=self._clock_device)
        self._now = self._taken.clone()
        self._offered: list[int] = []  # image counts of updates whose verdict is not yet read
        self._verdicts: list[Tensor] = []
        self._packed: list[Tensor] = []

    def update(self, tensors: Sequence[Tensor], nimg: int) -> None:
        """Take ``tensors`` into the averages, unless one holds a NaN or infinity.

        Args:
            tensors: Weights; they count for all images since the last update that was taken.
            nimg: Image count now.

        Raises:
            RuntimeError: If an earlier update was interrupted.
        """
        if not self._is_buffered:
            self._average(tensors, nimg)
        else:
            self._take_buffered()
            self._buffer = self._buffer or HostBuffer(tensors)
            self._buffer.send(tensors)
            self._buffered_nimg = nimg

    def _take_buffered(self) -> None:
        """Average the weights that the last update copied to the host, if any."""
        if self._buffer is not None and self._buffered_nimg is not None:
            nimg, self._buffered_nimg = self._buffered_nimg, None
            self._average(self._buffer.receive(), nimg)

    @torch.no_grad()
    def _average(self, tensors: Sequence[Tensor], nimg: int) -> None:
        self._refuse_torn()
        finite = self._all_in_range(tensors)
        if self.deferred or finite:
            self._now.fill_(nimg)
            self._is_torn = True  # until averages, history and clock agree again
            self._take(tensors, finite)
        self._record(nimg, finite)
        self._is_torn = False

    def _take(self, tensors: Sequence[Tensor], finite: Tensor) -> None:
        """Average tensors at the time that the clock shows; nothing but kernels, on a device."""
        passed = (self._taken - self._now) / self._now
        weights = -torch.expm1(self._powers * torch.log1p(passed))  # 1 - beta, Eq. 127
        weights = weights.to(self.device, self._flat.dtype)
        if self.deferred and are_alike(self._views[0], tensors):
            refused = finite.logical_not().float()
            for views, weight in zip(self._views, weights.unbind(), strict=True):
                lerp_all_(views, tensors, weight, refused)
        else:
            self._take_in_parts(tensors, torch.where(finite, weights, 0).unbind(), finite)
        self._taken.copy_(torch.where(finite, self._now, self._taken))

    def _take_in_parts(
        self, tensors: Sequence[Tensor], weights: Sequence[Tensor], finite: Tensor
    ) -> None:
        end = self._flat.shape[1]
        for values in self._flattened(tensors, reversed(self._groups)):  # the last are in cache
            for part in reversed(torch.split(values, self._chunk)):
                begin = end - len(part)
                # to a host, only a copy that is waited for is complete
                part = part.to(
                    self.device, self._flat.dtype, non_blocking=self.device.type != "cpu"
                )
                if self.deferred:
                    part = torch.where(finite, part, 0)  # 0 * NaN is NaN
                for flat, weight in zip(self._flat, weights, strict=True):
                    flat[begin:end].lerp_(part, weight)
                end = begin

    def _record(self, nimg: int, finite: Tensor) -> None:
        """Put an update on record; on a CPU, in the history at once."""
        self._offered.append(nimg)
        self._verdicts.append(finite)
        if len(self._verdicts) == _FOLD:
            self._packed.append(torch.stack(self._verdicts))
            self._verdicts = []
        if not self.deferred:
            self._read_verdicts()

    def settle(self) -> Averages:
        """Wait for the device, bring ``nimg``, ``history`` and ``num_refused`` up to date.

        Returns:
            These averages.
        """
        self._take_buffered()
        self._read_verdicts()
        return self

    def _read_verdicts(self) -> None:
        if not self._offered:
            return
        verdicts = [*self._packed, *(v.reshape(1) for v in self._verdicts)]
        for nimg, finite in zip(self._offered, torch.cat(verdicts).tolist(), strict=True):
            if not finite:
                self.num_refused += 1
                logger.warning(
                    "refused EMA update %d at nimg = %d: not finite", self.num_refused, nimg
                )
                continue
            stride, self.nimg = nimg - self.nimg, nimg
            if self.history and self.history[-1][0] == stride:
                self.history[-1][1] += 1
            else:
                self.history.append([stride, 1])
        self._offered, self._verdicts, self._packed = [], [], []

    def _flattened(
        self, tensors: Sequence[Tensor], groups: Iterable[list[int]]
    ) -> Iterator[Tensor]:
        """The flat elements of each group: a view of a large tensor, small ones concatenated."""
        for group in groups:
            rows = [row_like(tensors[i], self._layout[i]) for i in group]
            yield rows[0] if len(rows) == 1 else torch.cat(rows)

    def _all_in_range(self, tensors: Sequence[Tensor]) -> Tensor:
        """Whether all elements are numbers that can be averaged, a 0-dim bool.

        These are at most half the largest number of the averages, so that differences are finite.
        The answer is exact: it rests on extremes, which unlike sums and 2-norms cannot overflow.
        """
        limit = torch.finfo(self._flat.dtype).max / 2
        filled = [t for t in tensors if t.numel()]
        if not filled:  # a rank whose shards are all empty
            return torch.ones((), dtype=torch.bool, device=self._clock_device)
        if self.deferred:
            norms = torch._foreach_norm(filled, float("inf"))
            scalars = [norm.to(self._clock_device, non_blocking=True) for norm in norms]
            return (torch.stack(scalars).double() <= limit).all()
        # On a CPU the 2-norm reads fastest, and no element is larger; its squares may overflow.
        if all(
            torch.linalg.vector_norm(
                part, dtype=torch.promote_types(part.dtype, torch.float32)
            ).item()
            <= limit
            for values in self._flattened(tensors, self._groups)
            for part in torch.split(values, self._chunk)
        ):
            return torch.ones((), dtype=torch.bool)
        extremes = [extreme.cpu().double() for t in filled for extreme in torch.aminmax(t)]
        return (torch.stack(extremes).abs() <= limit).all()
