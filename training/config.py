"""RunConfig: everything that defines a training run, and its text form.

Values come from the dataclass defaults, then the YAML file, then ``--set a.b=c``
(:mod:`edm2lite.config_file`). The classes are plain dataclasses; the metadata of their fields is
explained in :mod:`edm2lite.training.fields`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BeforeValidator

from edm2lite import config_file
from edm2lite.config_file import shipped as shipped
from edm2lite.diffusion.format1 import upgraded_run
from edm2lite.diffusion.noise_density import LogNormal, NoiseDensity
from edm2lite.diffusion.objective import check_objective
from edm2lite.diffusion.precond import PrecondConfig
from edm2lite.diffusion.weighting import Weighting
from edm2lite.dtypes import Dtype
from edm2lite.ema.formulas import sigma_rel_to_gamma
from edm2lite.models.encoders import Encoder, PixelEncoder
from edm2lite.text.encoder import TextEncoder
from edm2lite.units import parse_count

from .data_config import DataConfig
from .fields import FREE, Nimg, check_fields
from .hook import Hook
from .prior import Prior, check_prior
from .sink import Sink
from .tuning import Tuning, with_model
from .validation import Validation
from .wandb_sink import WandB

POSITIVE = {"minimum": 1}
CADENCE = {"cadence": True, "minimum": 1}
OPTIONAL_CADENCE = {"cadence": True, "minimum": 0}


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Adam and its learning rate, see :func:`edm2lite.training.schedule.learning_rate`.

    Attributes:
        ref_lr: Peak learning rate alpha_ref.
        ref_batches: Number of batches t_ref after which the inverse-square-root decay begins; 0 for
            no decay.
        rampup_nimg: Length of the linear ramp in images; 0 for none.
        beta1: Decay of Adam's first moment per step.
        beta2: Decay of Adam's second moment per step.
        eps: Constant that Adam adds to the denominator.
        loss_scale: Constant factor on the loss during the backward pass, by which gradients are
            divided again: with float16 it keeps small gradients from vanishing. Otherwise it has no
            effect.
    """

    ref_lr: float = 0.0100
    ref_batches: Annotated[float, BeforeValidator(parse_count)] = 70000
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
    """Averages that are tracked during training.

    Attributes:
        sigma_rels: EMA lengths of the averages, each in (0, 0.2886).
        dtype: Floating-point type of the snapshot files.
    """

    sigma_rels: tuple[float, ...] = (0.05, 0.10)
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if not self.sigma_rels:
            raise ValueError("sigma_rels must hold at least one length, got none")
        sigma_rel_to_gamma(self.sigma_rels)
        names = [f"{sigma_rel:.5f}" for sigma_rel in self.sigma_rels]  # as snapshots are named
        if len(set(names)) < len(names):
            raise ValueError(
                "sigma_rels must differ in their first five decimals, got"
                f" {', '.join(map(str, self.sigma_rels))}"
            )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that defines a training run.

    Attributes:
        data: Training data.
        net: The denoiser. With ``init`` it is that of the model, but for what is given.
        init: Name of the model to fine-tune, as :func:`edm2lite.load` takes it; None to begin with
            random weights.
        tune: What is trained of that model, by its ``kind`` (:mod:`edm2lite.training.tuning`):
            ``lora``, ``embedding``, ``hypernetwork``, ``controlnet`` or ``full``. None for all.
        prior: Images that a fine-tuned model is to keep, half of every batch, or None
            (:mod:`edm2lite.training.prior`).
        encoder: Encoder from what the data set stores to what the network sees, by its ``kind``:
            ``pixels`` or ``latents``.
        text: Encoder of captions, by its ``kind``: ``static`` or ``transformers``. None for a
            network that is told no text, or that of ``data.captions``.
        loss: Density of noise levels, by its ``kind`` (:mod:`edm2lite.diffusion.noise_density`).
        weighting: Weight of each noise level in the loss (:mod:`edm2lite.diffusion.weighting`).
        optim: Optimizer and learning rate.
        ema: Tracked averages and their files.
        seed: Seed of initial weights, data order and noise.
        batch_size: Images per optimizer step, over all processes.
        microbatch: Largest number of images in one forward pass of one process; a smaller one needs
            less memory and gives the same result.
        total_nimg: Number of images to train on.
        status_nimg: Images between two status lines.
        snapshot_nimg: Images between two snapshots of the averages.
        checkpoint_nimg: Images between two checkpoints.
        keep_checkpoints: Number of intact checkpoints that stay, the newest ones; at least 2.
        max_bad_steps: Number of steps in a row with a non-finite gradient that stops the run.
        parallel: How several processes share the work: ``ddp``, each has a whole copy of the
            network; ``fsdp``, each has a part of every weight, gradient, moment and average.
        compile: Whether torch.compile translates the training step: on a GPU it pays.
        threads: Threads of a process on a CPU, which decide the last bits of all sums. None for as
            many as the run began with, or for torch's own choice if it begins.
        tensorboard: Whether values and sample grids are written for TensorBoard too.
        wandb: Weights & Biases run that values and sample grids are logged to, or None.
        sample_nimg: Images between two grids of samples from the averages; 0 for none. None for
            some 32 grids in a run, or fewer if they would take more than 2 % of its time, and for
            none of latents, which only their autoencoder could show.
        sample_count: Number of images in a grid.
        sample_steps: Number of steps of Heun's method for a grid.
        magnitudes_nimg: Images between two lines of ``magnitudes.jsonl``; 0 for none.
        validation: Loss on held-out images, or None.
        hooks: Further hooks, by their ``kind`` (:mod:`edm2lite.training.hook`).
        sinks: Further sinks, by their ``kind`` (:mod:`edm2lite.training.sink`).

    Example:
        >>> from edm2lite.training import RunConfig, load_config
        >>> config = load_config("digits")
        >>> isinstance(config, RunConfig), config.batch_size, config.ema.sigma_rels
        (True, 64, (0.05, 0.1))
    """

    data: DataConfig
    net: PrecondConfig
    init: str | None = None
    tune: Tuning | None = None
    prior: Prior | None = None
    encoder: Encoder = field(default_factory=PixelEncoder)
    text: TextEncoder | None = None
    loss: NoiseDensity = field(default_factory=LogNormal)
    weighting: Weighting = field(default_factory=Weighting)
    optim: OptimConfig = field(default_factory=OptimConfig)
    ema: EMAConfig = field(default_factory=EMAConfig)
    seed: int = 0
    batch_size: Nimg = field(default=2048, metadata=POSITIVE)
    microbatch: Nimg = field(default=64, metadata={**FREE, **POSITIVE})
    total_nimg: Nimg = field(default=2**31, metadata={**FREE, **CADENCE})
    status_nimg: Nimg = field(default=128 * 2**10, metadata={**FREE, **CADENCE})
    snapshot_nimg: Nimg = field(default=8 * 2**20, metadata=CADENCE)
    checkpoint_nimg: Nimg = field(default=128 * 2**20, metadata={**FREE, **CADENCE})
    keep_checkpoints: int = field(default=2, metadata={**FREE, "minimum": 2})
    max_bad_steps: Nimg = field(default=100, metadata={**FREE, **POSITIVE})
    parallel: Literal["ddp", "fsdp"] = field(default="ddp", metadata=FREE)
    compile: bool = field(default=False, metadata=FREE)
    threads: int | None = field(default=None, metadata=FREE)
    tensorboard: bool = field(default=False, metadata=FREE)
    wandb: WandB | None = field(default=None, metadata=FREE)
    sample_nimg: Nimg | None = field(default=None, metadata={**FREE, **OPTIONAL_CADENCE})
    sample_count: Nimg = field(default=32, metadata={**FREE, **POSITIVE})
    sample_steps: int = field(default=16, metadata={**FREE, **POSITIVE})
    magnitudes_nimg: Nimg = field(default=0, metadata={**FREE, **OPTIONAL_CADENCE})
    validation: Validation | None = field(default=None, metadata=FREE)
    hooks: tuple[Hook, ...] = field(default=(), metadata=FREE)
    sinks: tuple[Sink, ...] = field(default=(), metadata=FREE)

    def __post_init__(self) -> None:
        check_objective(self.net, self.loss, self.weighting)
        check_fields(self, self.batch_size)
        if self.tune is not None and self.init is None:
            raise ValueError("init must be given with tune: the model to fine-tune, got none")
        check_prior(self)
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}; leave it out")
        if self.validation is not None:
            check_fields(self.validation, self.batch_size, "validation.")
        for i, hook in enumerate(self.hooks):
            check_fields(hook, self.batch_size, f"hooks.{i}.")

    def to_yaml(self) -> str:
        """The complete text form; :func:`load_config` of it returns an equal object.

        :func:`edm2lite.config_file.comments.commented` writes a sentence above each key.
        """
        return config_file.dump(self)


def load_config(source: str, overrides: Iterable[str] = ()) -> RunConfig:
    """The configuration of a run.

    Args:
        source: A YAML file, the folder of a run, or the name of a shipped configuration.
        overrides: Changes ``a.b=c``, each value in YAML.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If a key is not known, or a value has the wrong type or is out of range; the
            message has the dotted path.

    Example:
        >>> from edm2lite.training import load_config
        >>> config = load_config("digits", ["total_nimg=128Ki", "optim.ref_lr=1e-2"])
        >>> config.total_nimg, config.optim.ref_lr, config.net.backbone.img_resolution
        (131072, 0.01, 8)
    """
    return config_file.load(RunConfig, source, overrides, upgrade=upgraded_run, complete=with_model)
