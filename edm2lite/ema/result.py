"""Reconstruction: a rebuilt average, or the plan for one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edm2lite.ema.profile import PowerFunction, Profile
from edm2lite.ema.rounding import ROUNDING
from edm2lite.ema.snapshot import SnapshotInfo
from edm2lite.tensorfile import load_tensors

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

_UNIT = 1e-8  # deviation from a unit vector that is far below the rounding of every type


@dataclass(frozen=True, repr=False)
class Reconstruction:
    """A rebuilt average, or the plan for one.

    Attributes:
        profile: The average.
        sigma_rel: EMA length as it was requested, never rounded; None for averages that are
            not power functions.
        coefficients: [K] coefficients, one per entry of ``inputs``; they sum to 1.
        predicted_error: Expected L2 error of the weights, relative to their L2 norm.
        inputs: Snapshots that are combined.
        num_stored: Number of snapshots up to the end of the average. Of very many, ``inputs`` are
            those that matter, see :func:`edm2lite.ema.selection.select_sources`.
        metadata: Metadata of the output file: the average, its predicted error and its provenance.
        state_dict: The tensors, if they were rebuilt in memory.
        path: The file, if the average was written to one.
        decay: Name of the decay that was requested, as ``cosine:0.2``; "" for other averages.

    Example:
        >>> import tempfile, torch
        >>> from edm2lite.ema import PowerFunctionEMA, plan_targets
        >>> ema, run = PowerFunctionEMA({"w": torch.ones(3)}), tempfile.mkdtemp()
        >>> ema.update(nimg=64)
        >>> _ = ema.save_snapshots(run)
        >>> (plan,) = plan_targets(run, sigma_rel=0.10)
        >>> plan.nimg, len(plan.inputs), round(plan.sum_abs, 3)
        (64, 2, 1.0)
        >>> repr(plan)[:40]
        'Reconstruction(sigma_rel=0.1, nimg=64, p'
    """

    profile: Profile
    sigma_rel: float | None
    coefficients: NDArray[np.float64]
    predicted_error: float
    inputs: tuple[SnapshotInfo, ...]
    metadata: dict[str, str]
    num_stored: int
    state_dict: dict[str, Tensor] | None = None
    path: Path | None = None
    decay: str = ""

    def __repr__(self) -> str:
        length = repr(self.profile) if self.sigma_rel is None else f"sigma_rel={self.sigma_rel!r}"
        if self.decay:
            length = f"decay={self.decay!r}"
        values = [length, f"nimg={self.nimg}", f"predicted_error={self.predicted_error:.1e}"]
        values.append(f"of {len(self.inputs)} snapshots")
        if self.state_dict is not None:
            values.append("in memory")
        return f"Reconstruction({', '.join([*values, *([str(self.path)] if self.path else [])])})"

    @property
    def gamma(self) -> float | None:
        """Exponent of the average; None for averages that are not power functions."""
        return self.profile.gamma if isinstance(self.profile, PowerFunction) else None

    @property
    def nimg(self) -> int:
        """End of the average, in images."""
        return self.profile.nimg

    @property
    def sum_abs(self) -> float:
        """Sum of the absolute coefficients."""
        return float(np.abs(self.coefficients).sum())

    def load_into(self, module: nn.Module) -> None:
        """Copy the average into a model, which may be wrapped by DDP, FSDP2 or torch.compile.

        Values take the types and devices that the model has.

        Args:
            module: The model whose weights were averaged, or another one that is built like it.

        Raises:
            ValueError: If this is a plan that was not carried out, or names or shapes of the
                tensors differ; the model is as it was then.

        Example:
            >>> import tempfile, torch
            >>> from edm2lite.ema import PowerFunctionEMA, reconstruct
            >>> model, run = torch.nn.Linear(2, 1), tempfile.mkdtemp()
            >>> ema = PowerFunctionEMA(model)
            >>> ema.update(nimg=64)
            >>> _ = ema.save_snapshots(run)
            >>> reconstruct(run, sigma_rel=0.10).load_into(torch.compile(model))
        """
        from edm2lite.ema.assignment import assign

        if self.state_dict is None and self.path is None:
            raise ValueError(
                "an average must be rebuilt before it is loaded, this is a plan; call reconstruct()"
            )
        assign(module, load_tensors(self.path)[0] if self.path else self.state_dict or {})

    def _exact_types(self) -> set[str]:
        """Types that hold every number of the result: those of a snapshot that is the result."""
        source = int(np.argmax(self.coefficients))
        others = np.delete(self.coefficients, source)
        if abs(self.coefficients[source] - 1) + np.abs(others).sum() > _UNIT:
            return set()
        return {self.inputs[source].dtype, "float32"}

    def stored_as(self, dtype: torch.dtype | str) -> Reconstruction:
        """This plan with the rounding of a result in ``dtype`` included in its predicted error.

        A stored average has been rounded already: to its own type, it does not round again.
        """
        name = str(dtype).removeprefix("torch.")
        rounding = 0.0 if name in self._exact_types() else ROUNDING[name]
        error = math.hypot(self.predicted_error, rounding)
        metadata = {**self.metadata, "predicted_error": repr(error)}
        return dataclasses.replace(self, predicted_error=error, metadata=metadata)
