"""RunConfig: everything that defines a training run, and its text form.

Values come from the dataclass defaults, then the YAML file, then ``--set a.b=c``
(:mod:`edm2lite.config_file`). The classes are plain dataclasses.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator

from edm2lite import config_file
from edm2lite.config_file import shipped as shipped
from edm2lite.diffusion.noise_density import LogNormal, NoiseDensity
from edm2lite.diffusion.objective import check_objective
from edm2lite.diffusion.precond import PrecondConfig, upgraded_run
from edm2lite.diffusion.weighting import Weighting
from edm2lite.dtypes import Dtype
from edm2lite.ema.formulas import sigma_rel_to_gamma
from edm2lite.models.encoders import Encoder, PixelEncoder
from edm2lite.units import parse_count

from .data import DataConfig

Nimg = Annotated[int, BeforeValidator(parse_count)]
CADENCES = (
    "total_nimg",
    "status_nimg",
    "snapshot_nimg",
    "checkpoint_nimg",
    "sample_nimg",
    "magnitudes_nimg",
)
"""Fields that count images and must be multiples of the batch size."""

AT_LEAST = {
    "batch_size": 1,
    "microbatch": 1,
    "total_nimg": 1,
    "status_nimg": 1,
    "snapshot_nimg": 1,
    "checkpoint_nimg": 1,
    "keep_checkpoints": 2,
    "max_bad_steps": 1,
    "sample_nimg": 0,
    "sample_count": 1,
    "sample_steps": 1,
    "magnitudes_nimg": 0,
}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its learning rate, see :func:`edm2lite.training.schedule.learning_rate`.

    Attributes:
        ref_lr: Peak learning rate alpha_ref.
        ref_batches: Batches t_ref at which the inverse-square-root decay begins; 0 for none.
        rampup_nimg: Length of the linear ramp in images.
        beta1, beta2, eps: Of Adam.
        loss_scale: Constant factor on the loss during the backward pass, taken off the gradients
            again: with float16 it keeps small ones from vanishing. Elsewhere it has no effect.
    """

    ref_lr: float = 0.0100
    ref_batches: float = 70000
    rampup_nimg: Nimg = 10_000_000
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    loss_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ref_lr", "eps", "loss_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and below 1, got {getattr(self, name)}"
                )
        if self.ref_batches < 0 or self.rampup_nimg < 0:
            raise ValueError("ref_batches and rampup_nimg must be at least 0 (0 for none)")


@dataclass(frozen=True, kw_only=True)
class EMAConfig:
    """Attributes:
    sigma_rels: Relative widths of the tracked averages.
    dtype: In which snapshots are stored.
    """

    sigma_rels: tuple[float, ...] = (0.05, 0.10)
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if not self.sigma_rels:
            raise ValueError("sigma_rels must hold at least one length, got none")
        sigma_rel_to_gamma(self.sigma_rels)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A training run.

    Attributes:
        data: What to train on.
        encoder: From what is stored to what the network sees; ``kind: pixels`` or ``latents``.
        net: The denoiser.
        loss: Noise levels: a density, by its ``kind`` (:mod:`edm2lite.diffusion.noise_density`).
        weighting: How much each of them counts (:mod:`edm2lite.diffusion.weighting`).
        optim: Optimizer and learning rate.
        ema: Tracked averages and their files.
        seed: Of weights, data order and noise.
        batch_size: Images per optimizer step, over all processes.
        microbatch: Most images in one forward pass of one process; less memory, same result.
        total_nimg: Images to train on.
        status_nimg, snapshot_nimg, checkpoint_nimg: Images between status lines, snapshots, and
            checkpoints.
        keep_checkpoints: Newest sound checkpoints that stay, at least 2.
        max_bad_steps: Steps in a row with a non-finite gradient after which the run stops.
        parallel: How several processes share the work: each with a whole copy of the network
            (``ddp``), or with a part of every weight, gradient, moment and average (``fsdp``).
        compile: Compile the U-Net with torch.compile.
        tensorboard: Write the figures of ``stats.jsonl`` and the sample grids for TensorBoard too.
        sample_nimg: Images between grids of samples from the averages; 0 for none.
        magnitudes_nimg: Images between lines of ``magnitudes.jsonl``; 0 for none.
        sample_count, sample_steps: Images in a grid, and steps of Heun's method for each.
    """

    data: DataConfig
    net: PrecondConfig
    encoder: Encoder = field(default_factory=PixelEncoder)
    loss: NoiseDensity = field(default_factory=LogNormal)
    weighting: Weighting = field(default_factory=Weighting)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    seed: int = 0
    batch_size: Nimg = 2048
    microbatch: Nimg = 64
    total_nimg: Nimg = 2**31
    status_nimg: Nimg = 128 * 2**10
    snapshot_nimg: Nimg = 8 * 2**20
    checkpoint_nimg: Nimg = 128 * 2**20
    keep_checkpoints: int = 2
    max_bad_steps: int = 100
    parallel: Literal["ddp", "fsdp"] = "ddp"
    compile: bool = False
    tensorboard: bool = False
    sample_nimg: Nimg = 0
    sample_count: int = 32
    sample_steps: int = 16
    magnitudes_nimg: Nimg = 0

    def __post_init__(self) -> None:
        check_objective(self.net, self.loss, self.weighting)
        for name, least in AT_LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in CADENCES:
            value = getattr(self, name)
            if value % self.batch_size:
                near = max(1, round(value / self.batch_size)) * self.batch_size
                raise ValueError(
                    f"{name} must be a multiple of batch_size = {self.batch_size}, got {value};"
                    f" the nearest is {near}"
                )

    def to_yaml(self) -> str:
        """Text form, complete; :func:`load_config` of it gives an equal object."""
        return config_file.dump(self)


MAY_CHANGE = (
    "total_nimg",
    "microbatch",
    "status_nimg",
    "checkpoint_nimg",
    "keep_checkpoints",
    "max_bad_steps",
    "parallel",
    "compile",
    "tensorboard",
    "sample_nimg",
    "sample_count",
    "sample_steps",
    "magnitudes_nimg",
    "data.workers",
    "data.prefetch",
)
"""Fields that an existing run may be continued with: they do not change its course."""


def load_config(source: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run; see :func:`edm2lite.config_file.load`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Unknown key, wrong type or value, with the dotted path.
    """
    return config_file.load(RunConfig, source, overrides, upgrade=upgraded_run)


def differing_keys(a: RunConfig, b: RunConfig) -> list[str]:
    """Dotted names of fields that differ and may not change within a run."""
    flat_a, flat_b = config_file.flatten(a), config_file.flatten(b)
    return [
        f"{key} ({flat_a.get(key)} in the run, {flat_b.get(key)} now)"
        for key in sorted(flat_a.keys() | flat_b.keys())
        if key not in MAY_CHANGE and flat_a.get(key) != flat_b.get(key)
    ]
