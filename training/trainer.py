"""The training loop of EDM2."""

from __future__ import annotations

import logging
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.objective import LossTerms
from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA
from edm2lite.network.layers import normalize_weights_
from edm2lite.seeding import Purpose, rng

from . import distributed, tensorboard
from .checkpoint import Checkpoints
from .compatibility import check_fit, with_encoder
from .config import RunConfig
from .data import Batch, BatchSource
from .magnitudes import MagnitudeLog
from .monitor import Monitor
from .optimizer import adam, full_precision, mend_gradients
from .outputs import Outputs
from .parallel import Shared
from .run_folder import check_run, check_world, open_run
from .schedule import learning_rate
from .signals import StopSignal
from .statistics import Figures

logger = logging.getLogger(__name__)


class Trainer:
    """One training run in one folder; continues from its newest checkpoint, if there is one.

    Args:
        config: What to train.
        run_dir: ``config.yaml``, ``stats.jsonl``, ``snapshots/``, ``checkpoints/`` and
            ``last.safetensors`` (the raw weights) go here.
        device: Where to train.

    Raises:
        ValueError: The data does not fit the network, or ``run_dir`` belongs to another run.
            Nothing has been written then.
    """

    def __init__(self, config: RunConfig, run_dir: Path, device: torch.device):
        dataset = open_dataset(config.data.source)
        config = with_encoder(config, dataset)
        self.config, self.run_dir, self.device = config, run_dir, device
        check_fit(config, dataset)
        check_world(config, distributed.world_size())
        check_run(config, run_dir)
        if config.tensorboard:
            tensorboard.check_installed()
        full_precision()
        torch.manual_seed(config.seed)
        self.net = Precond(config.net).train()
        self.shared = Shared(self.net, config.weighting, config.parallel, config.compile, device)
        self.optimizer = adam(self.net, config.optim, device)
        self.ema = PowerFunctionEMA(self.net, config.ema.sigma_rels, run=open_run(config, run_dir))
        self.outputs = Outputs(
            config, run_dir, self.net, self.ema, is_sharded=self.shared.is_sharded
        )
        self.figures = Figures(config.loss, device)
        self.checkpoints = Checkpoints(run_dir / "checkpoints", config.keep_checkpoints)
        self.nimg = 0
        self._restore()
        self.magnitudes = MagnitudeLog(self.net, run_dir, config.magnitudes_nimg, self.nimg)
        self.batches = BatchSource(
            dataset,
            seed=config.seed,
            batch_size=config.batch_size,
            microbatch=config.microbatch,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
            data=config.data,
        )

    def train(self) -> None:
        """Run to ``config.total_nimg``, or until SIGTERM or SIGUSR1.

        Raises:
            FloatingPointError: Gradients were not finite for too many steps in a row.
            OSError: A file could not be written.
        """
        config, signal_name = self.config, None
        with closing(self.batches), self._monitor() as monitor, StopSignal() as stop:
            while self.nimg < config.total_nimg and signal_name is None:
                with self.magnitudes.around(self.nimg + config.batch_size):
                    self.train_step()
                    self.nimg += config.batch_size
                    self.ema.update(self.nimg)
                    normalize_weights_(self.net)  # Eq. 66; the average takes weights before it
                monitor.advance(config.batch_size)
                signal_name = stop.agreed()
                is_bad = self._has_bad_row()
                if self.due(config.status_nimg) or is_bad:
                    monitor.report(self.nimg, figures := self._tick_figures(monitor.nimg))
                if is_bad:
                    raise FloatingPointError(
                        f"gradients must be finite, they were not in {config.max_bad_steps} steps"
                        f" in a row (max_bad_steps){self._culprit(figures['last_bad_sample'])};"
                        " lower optim.ref_lr, or look at that data"
                    )
                if self.due(config.snapshot_nimg):
                    self.outputs.save_snapshots()
                if config.sample_nimg and self.due(config.sample_nimg):
                    for sigma_rel, picture in self.outputs.samples():
                        monitor.show_samples(self.nimg, sigma_rel, picture)
                if self.due(config.checkpoint_nimg) or signal_name is not None:
                    self._save_checkpoint()
            self.checkpoints.flush()
        if self.nimg >= config.total_nimg:
            self.outputs.save_last(self.nimg)
        else:
            logger.info(
                "stopped for %s at nimg = %d of %d, with a checkpoint in %s; the same command"
                " continues",
                signal_name, self.nimg, config.total_nimg, self.checkpoints.folder,
            )  # fmt: skip

    def train_step(self) -> Tensor:
        """One optimizer step over the batch at ``self.nimg``; per-element losses of this rank."""
        config = self.config
        micro = self.batches.batch(self.nimg)
        share = config.batch_size // distributed.world_size()
        terms: list[LossTerms] = []
        sigmas = []
        for i, batch in enumerate(micro):
            sigma = config.loss.sigma(batch.z.to(self.device, non_blocking=True))
            sigmas.append(sigma)
            with nullcontext() if i + 1 == len(micro) else self.shared.gradients_kept():
                terms.append(self._backward(batch, sigma, share))
        gradient = mend_gradients(self.shared, config.optim.loss_scale)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        losses, u = (torch.cat(parts) for parts in zip(*terms, strict=True))
        indices = torch.cat([torch.from_numpy(batch.indices) for batch in micro])
        indices = indices.to(self.device, non_blocking=True)
        self.figures.add_losses(losses, u, torch.cat(sigmas), indices)
        self.figures.add_step(self.nimg, gradient)
        return losses

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

    def due(self, interval: int) -> bool:
        """Whether something that happens every ``interval`` images, and at the end, is due."""
        return self.nimg % interval == 0 or self.nimg >= self.config.total_nimg

    def _backward(self, batch: Batch, sigma: Tensor, share: int) -> LossTerms:
        """Add the gradient of the mean loss per sample; returns the loss per element, and u."""
        # dropout masks follow the samples, not the process or the restart
        seed = rng(self.config.seed, int(batch.indices[0]), Purpose.DROPOUT)
        torch.manual_seed(int(seed.integers(2**63)))
        images = self._encoded(batch)
        names = self.config.net.backbone.condition_names
        told = batch.conditioning.only(names).to(self.device, non_blocking=True)
        noise = batch.noise.to(self.device, non_blocking=True)
        self.magnitudes.see(images, noise, sigma, told)
        losses, u = self.shared.loss(images, told, sigma, noise)
        (losses.sum() / share * self.config.optim.loss_scale).backward()
        return LossTerms(losses.detach() / images[0].numel(), u)

    def _encoded(self, batch: Batch) -> Tensor:
        raw = batch.images.to(self.device, non_blocking=True)
        noise = batch.latent_noise
        if noise is not None:
            noise = noise.to(self.device, non_blocking=True)
        return self.config.encoder.encode(raw, noise)

    def _monitor(self) -> Monitor:
        total, board = self.config.total_nimg, self.config.tensorboard
        return Monitor(self.run_dir, nimg=self.nimg, total_nimg=total, tensorboard=board)

    def _tick_figures(self, since: int) -> dict[str, Any]:
        """Everything that the line of a tick says of the run; every rank calls this."""
        figures = {**self.figures.finish(), "lr": self.lr(), **self.magnitudes.figures()}
        latest = figures["last_bad_nimg"]
        if latest is not None and latest >= since:
            logger.warning(
                "%d steps so far had gradients that were not finite, set to 0; the last at nimg ="
                " %d%s",
                figures["nonfinite_steps"], latest, self._culprit(figures["last_bad_sample"]),
            )  # fmt: skip
        return figures

    def _has_bad_row(self) -> bool:
        """Whether too many steps in a row had no finite gradient; asks a GPU once a tick only."""
        if self.device.type != "cpu" and not self.due(self.config.status_nimg):
            return False
        return self.figures.longest_bad_row() >= self.config.max_bad_steps

    def _culprit(self, sample: int | None) -> str:
        if sample is None:
            return ""
        name, row = self.config.data.source, self.batches.row(sample)
        return f"; the loss of sample {sample}, image {row} of {name}, was not finite"

    def _restore(self) -> None:
        """Continue from the newest sound checkpoint, if there is one."""
        state = self.checkpoints.load_latest(self._state)
        if state is not None:
            set_model_state_dict(self.net, state["net"])
            set_optimizer_state_dict(self.net, self.optimizer, state["optimizer"])
            self.ema.load_state_dict(state["ema"])
            self.figures.load(state["figures"])
            self.nimg = state["nimg"]
        self.outputs.set_aside_after(self.nimg)

    def _state(self) -> dict[str, Any]:
        """What a checkpoint holds; every rank calls this."""
        return {
            "net": get_model_state_dict(self.net),
            "optimizer": get_optimizer_state_dict(self.net, self.optimizer),
            "ema": self.ema.state_dict(),
            "figures": self.figures.state(),
            "nimg": self.nimg,
        }

    def _save_checkpoint(self) -> None:
        self.checkpoints.save(self.nimg, self._state(), self.outputs.finish_snapshots)
