"""The training loop of EDM2."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from edm2lite import processes
from edm2lite.diffusion.objective import LossTerms
from edm2lite.diffusion.precond import Precond
from edm2lite.models.loading import Model
from edm2lite.network.layers import normalize_weights_
from edm2lite.seeding import Purpose, rng

from . import distributed, machine
from .checkpoint import Checkpoints
from .config import RunConfig
from .data import Batch, BatchSource, LossInputs
from .hook import Hook
from .optimizer import adam, training_arithmetic, zero_nonfinite_gradients
from .outputs import Outputs
from .parallel import ParallelLoss
from .preparation import prepare
from .prior import weighted
from .prior_images import make_prior
from .run_folder import RunFolder
from .schedule import learning_rate
from .signals import StopSignal
from .sink import Sink, plain
from .sinks import logged, started
from .state import restore, state_of
from .statistics import NAMES, Statistics
from .tuning import begin

logger = logging.getLogger(__name__)


class Trainer:
    """One training run in one folder; continues from its newest checkpoint, if there is one.

    Attributes:
        config: Configuration of the run, with what the data set adds to it.
        run_dir: Folder of the run.
        device: Device of this process.
        is_main: Whether this process has rank 0, which writes the files.
        dataset: Training data.
        net: The denoiser; the shards of it that this process has under ``parallel: fsdp``.
        ema: The tracked averages.
        nimg: Number of images seen.
        stopped_by: Name of the signal that ends the run, None while there is none.
        last_inputs: What the loss was given last in this process; None before the first step.

    Args:
        config: Configuration of the run.
        run_dir: ``config.yaml``, ``stats.jsonl``, ``snapshots/``, ``checkpoints/`` and
            ``last.safetensors`` (the raw weights) go here.
        device: Device to train on. [default: the GPU of this process if there is one]
        hooks: Hooks besides those of the configuration.
        sinks: Sinks besides those of the configuration.

    Raises:
        FileNotFoundError: If the data set does not exist.
        ValueError: If the data does not fit the network, a hook does not fit the run, or
            ``run_dir`` belongs to another run. Nothing has been written then.
        ImportError: If a sink needs a package that is not installed; nothing has been written.

    Example:
        >>> import tempfile
        >>> from edm2lite.training import Trainer, load_config
        >>> tiny = ["net.backbone.model_channels=16", "net.backbone.head_channels=16"]
        >>> config = load_config("digits", [*tiny, "optim.rampup_nimg=0"])
        >>> trainer = Trainer(config, Path(tempfile.mkdtemp()) / "run", torch.device("cpu"))
        >>> trainer.train_step().shape
        torch.Size([64])
        >>> trainer.close()
    """

    def __init__(
        self,
        config: RunConfig,
        run_dir: Path | str,
        device: torch.device | None = None,
        *,
        hooks: Sequence[Hook] = (),
        sinks: Sequence[Sink] = (),
    ):
        rank, world_size = distributed.rank(), distributed.world_size()
        run_dir = Path(run_dir)
        prepared = prepare(config, run_dir, world_size, hooks, sinks)
        config, self.dataset, self.hooks = prepared.config, prepared.dataset, prepared.hooks
        self.sinks = prepared.sinks if rank == 0 else []
        self.config, self.run_dir = config, run_dir
        self.device, self.is_main = device or processes.device(), rank == 0
        self._threads = torch.get_num_threads()  # of the program before this run
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        torch.manual_seed(config.seed)
        self.net = Precond(config.net).train()
        self.tuned = begin(config, self.net, prepared.base)
        self.loss = ParallelLoss(self.net, config, self.device)
        self.optimizer = adam(self.net, config.optim, self.device)
        self.ema = self.tuned.tracker(config.ema.sigma_rels)
        self.outputs = Outputs(
            config, run_dir, self.tuned, self.ema, self.dataset, is_sharded=self.loss.is_sharded
        )
        self.statistics = Statistics(config.loss, self.device)
        self.folder = RunFolder(config, run_dir, prepared.base_identity)
        self.checkpoints = Checkpoints(
            run_dir / "checkpoints", config.keep_checkpoints, self.folder.check
        )
        self.nimg = 0
        self.stopped_by: str | None = None
        self.last_inputs: LossInputs | None = None
        self.reported: dict[str, Any] = {}
        self.batches = BatchSource(
            self.dataset, seed=config.seed, batch_size=config.batch_size,
            microbatch=config.microbatch, rank=rank, world_size=world_size, data=config.data,
            names=config.net.backbone.condition_names, encoder=config.encoder,
            prior=prepared.prior, is_pinned=self.device.type == "cuda",
        )  # fmt: skip
        self._open(prepared.base)

    @training_arithmetic()
    def train(self) -> None:
        """Run to ``config.total_nimg``, or until SIGTERM, SIGUSR1 or Ctrl-C.

        Raises:
            KeyboardInterrupt: After the first Ctrl-C, at the end of the step, with a checkpoint
                that its text names; after the second one at once, without a text.
            FloatingPointError: If gradients were not finite for too many steps in a row.
            OSError: If a file could not be written.
        """
        with contextlib.closing(self), started(self):
            with StopSignal() as stop:
                self._loop(stop)
            if self.nimg >= self.config.total_nimg:
                self.folder.check()
                self.outputs.save_last(self.nimg)
                return
        text = (
            f"stopped for {self.stopped_by} at nimg = {self.nimg} of {self.config.total_nimg}, with"
            f" a checkpoint in {self.checkpoints.path(self.nimg)}; the same command continues from"
            " it"
        )
        if self.stopped_by == "SIGINT":
            raise KeyboardInterrupt(text)
        logger.info(text)

    def close(self) -> None:
        """Let other processes continue the run, once this one writes nothing; train() calls it."""
        self.batches.close()
        torch.set_num_threads(self._threads)
        self.ema.release()
        self.checkpoints.when_idle(self.folder.release)

    def _loop(self, stop: StopSignal) -> None:
        for hook in self.hooks:
            hook.start(self)
        while self.nimg < self.config.total_nimg and self.stopped_by is None:
            self._announce_step()
            self.train_step()  # forward, backward, Adam at the rate lr()
            self.nimg += self.config.batch_size
            self.ema.update(self.nimg)
            normalize_weights_(self.net)  # Eq. 66; the average takes weights before it
            self.stopped_by = stop.agreed()
            self._run_hooks()
        for hook in self.hooks:
            hook.finish(self)

    @training_arithmetic()
    def train_step(self) -> Tensor:
        """One optimizer step over the batch at :attr:`nimg`.

        Returns:
            [N] loss per element of each sample of this process, without gradient.
        """
        micro = self.batches.batch(self.nimg)
        losses = []
        for i, batch in enumerate(micro):
            inputs = self._inputs(batch)
            with self.loss.accumulating(is_first=i == 0, is_last=i + 1 == len(micro)):
                terms = self._backward(inputs, batch)
            losses.append(terms.loss.detach() / inputs.images[0].numel())
            self.statistics.add_losses(losses[-1], terms.u, inputs.sigma, batch.indices)
        norm = zero_nonfinite_gradients(self.loss, self.config.optim.loss_scale)
        self.optimizer.step_at(self.lr())
        self.optimizer.zero_grad(set_to_none=True)
        self.statistics.add_step(self.nimg, norm)
        return torch.cat(losses)

    def lr(self) -> float:
        """Learning rate of the step that starts now."""
        optim = self.config.optim
        return learning_rate(
            self.nimg,
            self.config.batch_size,
            ref_lr=optim.ref_lr,
            ref_batches=optim.ref_batches,
            rampup_nimg=optim.rampup_nimg,
        )

    def report(self, name: str, value: float | Tensor | Mapping[str, Any]) -> None:
        """Send a value to the sinks, with the line of ``stats.jsonl`` at :attr:`nimg` images.

        Args:
            name: Name of the value, which must not be one of the trainer's own.
            value: A number, or a mapping of names to numbers or such mappings.

        Raises:
            ValueError: If the trainer writes a value of that name itself.
        """
        if name in NAMES:
            raise ValueError(
                f"a hook must report under a name of its own, {name} is one of the trainer's"
            )
        self.reported[name] = plain(value)

    def show(self, name: str, picture: NDArray[np.uint8]) -> None:
        """Send a picture [H, W, C] uint8, C = 1 or 3, to the sinks."""
        for sink in self.sinks:
            sink.picture(name, picture, self.nimg)

    def save_checkpoint(self) -> None:
        """Copy the state and return while a thread writes it, after all snapshots so far."""
        self.checkpoints.save(self.nimg, state_of(self), self.outputs.finish_snapshots)

    def _announce_step(self) -> None:
        """Let hooks that will be due after the next step see the state before it."""
        for hook in self.hooks:
            if hook.is_due(self.nimg + self.config.batch_size, self.config.total_nimg):
                hook.before_step(self)

    @torch.no_grad()
    def _run_hooks(self) -> None:
        """Do what is due after a step."""
        for sink in self.sinks:
            sink.advance(self.nimg)
        for hook in self.hooks:
            if hook.is_due(self.nimg, self.config.total_nimg) or hook.is_needed(self):
                self.folder.check()
                with self.loss.between_steps():
                    hook.run(self)

    def _inputs(self, batch: Batch) -> LossInputs:
        """A batch on the device, with its noise levels."""
        sigma = self.config.loss.sigma(batch.z.to(self.device, non_blocking=True))
        images = self._encoded(batch)
        told = batch.conditioning.to(self.device, non_blocking=True)
        noise = batch.noise.to(self.device, non_blocking=True)
        self.last_inputs = LossInputs(images, told, sigma, noise)
        return self.last_inputs

    def _encoded(self, batch: Batch) -> Tensor:
        raw = batch.images.to(self.device, non_blocking=True)
        noise = batch.latent_noise
        if noise is not None:
            noise = noise.to(self.device, non_blocking=True)
        return self.config.encoder.encode(raw, noise)

    def _backward(self, inputs: LossInputs, batch: Batch) -> LossTerms:
        """Add the gradient of the mean loss per sample of this process."""
        # dropout masks follow the samples, not the process or the restart
        seed = rng(self.config.seed, int(batch.indices[0]), Purpose.DROPOUT)
        torch.manual_seed(int(seed.integers(2**63)))
        terms = self.loss(inputs)
        loss = weighted(terms.loss, self.config.prior, batch.indices)
        mean = loss.sum() / self.batches.local_batch_size
        torch.autograd.backward(mean * self.config.optim.loss_scale)
        return terms

    def _open(self, base: Model | None) -> None:
        """Claim the folder, and continue from the newest intact checkpoint, if there is one."""
        try:
            run = self.folder.open()
            with logged(self):
                make_prior(self.config, self.dataset, base, self.run_dir, self.device)
                self.checkpoints.remove_abandoned()
                state = self.checkpoints.load_latest(partial(state_of, self))
                if state is not None:
                    restore(self, state)
                    machine.resume(self.checkpoints.loaded, self.config.threads, self.device)
                self.ema.run = run  # a checkpoint of a run that was forked has that of its origin
                self.outputs.begin()
        except BaseException:
            self.close()
            raise
