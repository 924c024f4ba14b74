"""PowerFunctionEMA: running power-function averages of the tensors of any model.

Call :meth:`PowerFunctionEMA.update` after each optimizer step with the number of images seen so
far, and :meth:`PowerFunctionEMA.save_snapshots` now and then. The averages then follow the exact
profile of Eq. 1 for any stride, and any other length can be rebuilt from the files afterwards.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edm2lite.ema.profile import PowerFunction, decay, gamma_to_sigma_rel, sigma_rel_to_gamma
from edm2lite.ema.snapshot import snapshot_path, write_snapshot

logger = logging.getLogger(__name__)

Source = nn.Module | Mapping[str, Tensor]


class PowerFunctionEMA:
    """Averages of a model's parameters under one or more power-function profiles.

    After ``update(nimg)`` each average is ``sum_k p_k theta_k`` over the updates k so far, where
    ``p_k = (n_k / n)**(gamma+1) - (n_{k-1} / n)**(gamma+1)`` and n_k is the image count of update k
    (Eq. 127 with the weights held still between updates). The initial weights have no mass.

    Parameters that train are averaged in ``dtype`` whatever their own dtype; buffers and frozen
    parameters are copied as they are when a snapshot is written.

    Args:
        source: A module, or a mapping of names to tensors.
        sigma_rels: Relative widths, each in (0, 0.2887). [default: 0.05 and 0.10]
        gammas: Exponents, in place of ``sigma_rels``.
        start_nimg: Images that count as seen before averaging begins. With a value above 0 (late
            start, or fine-tuning with the clock of the pre-training) the current weights take the
            mass of all time before it.
        dtype: Floating-point type of the averages.
        run: Identifier stored in every snapshot. [default: a random one]

    Raises:
        ValueError: Unusable lengths, or nothing to average.
    """

    def __init__(
        self,
        source: Source,
        sigma_rels: Sequence[float] | None = None,
        *,
        gammas: Sequence[float] | None = None,
        start_nimg: int = 0,
        dtype: torch.dtype = torch.float32,
        run: str | None = None,
    ):
        if sigma_rels is not None and gammas is not None:
            raise ValueError("give either sigma_rels or gammas, not both")
        if gammas is None:
            self.sigma_rels = tuple(float(s) for s in sigma_rels or (0.05, 0.10))
            self.gammas = tuple(float(sigma_rel_to_gamma(s)) for s in self.sigma_rels)
        else:
            self.gammas = tuple(float(g) for g in gammas)
            self.sigma_rels = tuple(float(gamma_to_sigma_rel(g)) for g in self.gammas)
        names = [snapshot_path(Path(), s, 0) for s in self.sigma_rels]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                "lengths must be distinct to 5 decimals of sigma_rel and at least one, got"
                f" {self.sigma_rels}"
            )
        self._source = source
        self._trained = {name for name, p in _named(source).items() if _is_trained(source, p)}
        if not self._trained:
            raise ValueError("source must hold at least one floating-point tensor that trains")
        self.nimg = self.start_nimg = start_nimg
        self.run = run or secrets.token_hex(4)
        self.history: list[list[int]] = []
        self.num_refused = 0
        self._averages = [
            {name: t.detach().to(dtype, copy=True) for name, t in self._live().items()}
            for _ in self.gammas
        ]

    @torch.no_grad()
    def update(self, nimg: int, source: Source | None = None) -> None:
        """Take the current weights into every average; ``nimg`` images have been seen by now.

        An update with a NaN or infinity in any trained tensor is refused: counted in
        ``num_refused``, logged, and the next update covers its stride.

        Args:
            nimg: Exact image count after the optimizer step, larger than at the last update.
            source: Where the weights are now. [default: the source given at construction]

        Raises:
            ValueError: The clock did not advance, or the tensors are not the ones tracked.
        """
        if nimg <= self.nimg:
            raise ValueError(
                f"nimg must grow from update to update, got {nimg} after {self.nimg}; count the"
                " images of the step before the call"
            )
        live = self._live(source)
        weights = list(live.values())
        if not all(torch.isfinite(n) for n in torch._foreach_norm(weights)):
            self.num_refused += 1
            logger.warning("refused EMA update %d at nimg = %d: not finite", self.num_refused, nimg)
            return
        stride = nimg - self.nimg
        for gamma, average in zip(self.gammas, self._averages, strict=True):
            averages = [average[name] for name in live]
            ends = [w.to(a.dtype) for a, w in zip(averages, weights, strict=True)]
            torch._foreach_lerp_(averages, ends, 1 - float(decay(gamma, nimg, stride)))
        self.nimg = nimg
        if self.history and self.history[-1][0] == stride:
            self.history[-1][1] += 1
        else:
            self.history.append([stride, 1])

    def state_dict_of(self, sigma_rel: float) -> dict[str, Tensor]:
        """The whole state dict with averaged parameters in place of the trained ones.

        Raises:
            ValueError: ``sigma_rel`` is not one of the tracked lengths.
        """
        if sigma_rel not in self.sigma_rels:
            raise ValueError(f"sigma_rel must be one of {self.sigma_rels}, got {sigma_rel}")
        average = self._averages[self.sigma_rels.index(sigma_rel)]
        return {name: average.get(name, value) for name, value in _named(self._source).items()}

    @contextmanager
    def applied(self, sigma_rel: float) -> Iterator[None]:
        """Within the block the source's tensors hold the average; afterwards exactly their own."""
        live = self._live()
        own = {name: tensor.detach().clone() for name, tensor in live.items()}
        average = self.state_dict_of(sigma_rel)
        with torch.no_grad():
            for name, tensor in live.items():
                tensor.copy_(average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, tensor in live.items():
                    tensor.copy_(own[name])

    def save_snapshots(
        self,
        folder: str | Path,
        dtype: torch.dtype = torch.float32,
        extra: Mapping[str, str] | None = None,
    ) -> list[Path]:
        """Write every average to ``folder``; see :mod:`edm2lite.ema.snapshot` for the format.

        Args:
            folder: Made if missing.
            dtype: float32, float16 or bfloat16, of the stored values.
            extra: Further metadata: ``model`` (JSON) and the like.

        Raises:
            ValueError: No update has been made, or a value is not finite in ``dtype``.
        """
        if not self.history:
            raise ValueError("a snapshot needs at least one update; call update(nimg) first")
        return [
            write_snapshot(
                Path(folder),
                self.state_dict_of(sigma_rel),
                run=self.run,
                profile=PowerFunction(gamma, self.nimg),
                sigma_rel=sigma_rel,
                history=[(s, n) for s, n in self.history],
                start_nimg=self.start_nimg,
                dtype=dtype,
                extra=extra or {},
            )
            for gamma, sigma_rel in zip(self.gammas, self.sigma_rels, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to continue exactly: averages and clock."""
        return {
            "averages": {
                repr(s): dict(a) for s, a in zip(self.sigma_rels, self._averages, strict=True)
            },
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
            ValueError: It tracks other lengths or other tensors.
        """
        wanted = [repr(s) for s in self.sigma_rels]
        if sorted(state["averages"]) != sorted(wanted):
            raise ValueError(
                f"saved averages must have lengths {wanted}, found {sorted(state['averages'])}"
            )
        for key, average in zip(wanted, self._averages, strict=True):
            saved = state["averages"][key]
            _check_names(average, saved)
            for name, tensor in average.items():
                tensor.copy_(saved[name])
        clock = state["clock"]
        self.nimg, self.start_nimg = clock["nimg"], clock["start_nimg"]
        self.history = [list(pair) for pair in clock["history"]]
        self.num_refused, self.run = clock["num_refused"], clock["run"]

    def _live(self, source: Source | None = None) -> dict[str, Tensor]:
        """The trained tensors as they are now, in a fixed order."""
        tensors = _named(self._source if source is None else source)
        if source is not None:
            _check_names(self._averages[0], [n for n in tensors if n in self._trained])
        return {n: t.detach() for n, t in tensors.items() if n in self._trained}


def clean_names(names: Iterable[str]) -> list[str]:
    """Tensor names without what torch.compile, FSDP1 and DDP put in, in the same order."""
    names = [n.replace("_orig_mod.", "").replace("_fsdp_wrapped_module.", "") for n in names]
    while names and all(n.startswith("module.") for n in names):
        names = [n.removeprefix("module.") for n in names]
    return names


def _named(source: Source) -> dict[str, Tensor]:
    """Name -> live tensor, as in the model's own state dict."""
    tensors = source.state_dict(keep_vars=True) if isinstance(source, nn.Module) else source
    return dict(zip(clean_names(tensors), tensors.values(), strict=True))


def _is_trained(source: Source, tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    if isinstance(source, nn.Module):
        return isinstance(tensor, nn.Parameter) and tensor.requires_grad
    return True


def _check_names(expected: Iterable[str], found: Iterable[str]) -> None:
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise ValueError(
            "tensors must be the ones that are averaged;"
            f" missing {missing[:5] or 'none'}, unknown {unknown[:5] or 'none'}"
        )
