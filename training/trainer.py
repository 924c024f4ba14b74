"""The training loop of EDM2."""

from __future__ import annotations

import json
import logging
import secrets
from pathlib import Path

import torch
from torch import Tensor

from edm2lite.dataset import open_dataset
from edm2lite.ema import PowerFunctionEMA
from edm2lite.encoders import PixelEncoder
from edm2lite.layers import normalize_weights_
from edm2lite.objective import DenoisingLoss
from edm2lite.precond import Precond
from edm2lite.seeding import Purpose, rng
from edm2lite.tensorfile import replacing

from . import checkpoint, distributed
from .config import RunConfig, differing_keys, load_config
from .data import Batch, BatchSource
from .fit import check_fit, with_encoder
from .monitor import Monitor
from .schedule import learning_rate

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
        torch.manual_seed(config.seed)
        self.net = Precond(config.net).to(device).train()
        self.loss = distributed.replicate(DenoisingLoss(self.net), device)
        self.optimizer = torch.optim.Adam(
            self.net.parameters(),
            lr=config.optim.ref_lr,
            betas=(config.optim.beta1, config.optim.beta2),
            eps=config.optim.eps,
            fused=device.type == "cuda",
        )
        self.run = open_run(config, run_dir)
        self.ema = PowerFunctionEMA(self.net, config.ema.sigma_rels, run=self.run)
        self.bad_steps = torch.zeros(2, dtype=torch.int64, device=device)  # in a row, in all
        self.tick = torch.zeros(2, dtype=torch.float64, device=device)  # loss, samples so far
        self.nimg = checkpoint.load_latest(
            run_dir / "checkpoints", self.net, self.optimizer, self.ema, self._figures()
        )
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
        """Run to ``config.total_nimg``.

        Raises:
            FloatingPointError: Gradients were not finite for too many steps in a row.
        """
        config = self.config
        if self.nimg >= config.total_nimg:
            self._save_weights()
            return
        with Monitor(
            self.run_dir, nimg=self.nimg, total_nimg=config.total_nimg, sums=self.tick
        ) as monitor:
            while self.nimg < config.total_nimg:
                monitor.add(self.train_step())
                self.nimg += config.batch_size
                self.ema.update(self.nimg)
                normalize_weights_(self.net)  # Eq. 66; the average takes the weights before it
                monitor.advance(config.batch_size)
                if self.due(config.status_nimg):
                    in_row, in_all = self.bad_steps.tolist()
                    monitor.report(self.nimg, lr=self.lr(), nonfinite_steps=in_all)
                    self._check_bad_steps(in_row)
                if self.due(config.snapshot_nimg):
                    self._save_snapshots()
                if self.due(config.checkpoint_nimg):
                    self.tick = monitor.sums()
                    self._save_checkpoint()
        self.batches.close()
        self._save_weights()

    def train_step(self) -> Tensor:
        """One optimizer step over the batch at ``self.nimg``; per-element losses of this rank."""
        config = self.config
        micro = self.batches.batch(self.nimg)
        share = config.batch_size // distributed.world_size()
        losses = []
        for i, batch in enumerate(micro):
            if i + 1 < len(micro):
                with distributed.gradients_kept(self.loss):
                    losses.append(self._backward(batch, share))
            else:
                losses.append(self._backward(batch, share))
        self._mend_gradients()
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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

    def due(self, interval: int) -> bool:
        """Whether something that happens every ``interval`` images, and at the end, is due."""
        return self.nimg % interval == 0 or self.nimg >= self.config.total_nimg

    def _backward(self, batch: Batch, share: int) -> Tensor:
        """Add the gradient of the mean loss per sample; returns the loss per element [N]."""
        if self.config.net.unet.dropout:  # masks follow the samples, not the process or the restart
            seed = rng(self.config.seed, int(batch.indices[0]), Purpose.DROPOUT)
            torch.manual_seed(int(seed.integers(2**63)))
        images = self._encoded(batch)
        labels = None
        if batch.labels is not None and self.config.net.unet.label_dim:
            labels = batch.labels.to(self.device, non_blocking=True)
        sigma = self.config.loss.sigma(batch.z.to(self.device, non_blocking=True))
        noise = batch.noise.to(self.device, non_blocking=True)
        losses = self.loss(images, labels, sigma, noise)
        (losses.sum() / share).backward()
        return losses.detach() / images[0].numel()

    def _encoded(self, batch: Batch) -> Tensor:
        raw = batch.images.to(self.device, non_blocking=True)
        encoder = self.config.encoder
        if isinstance(encoder, PixelEncoder):
            return encoder.encode(raw)
        assert batch.latent_noise is not None
        return encoder.encode(raw, batch.latent_noise.to(self.device, non_blocking=True))

    @torch.no_grad()
    def _mend_gradients(self) -> None:
        """Set NaN and infinite gradients to 0 and count the steps that had any, without a sync."""
        grads = [p.grad for p in self.net.parameters() if p.grad is not None]
        finite = torch.stack(torch._foreach_norm(grads)).isfinite().all()
        if self.device.type != "cpu" or not finite:
            for grad in grads:
                torch.nan_to_num_(grad, nan=0.0, posinf=0.0, neginf=0.0)
        self.bad_steps += 1 - finite.long()
        self.bad_steps[0] *= 1 - finite.long()

    def _check_bad_steps(self, in_row: int) -> None:
        if in_row >= self.config.max_bad_steps:
            raise FloatingPointError(
                f"gradients must be finite, they were not in the last {in_row} steps (max_bad_steps"
                f" = {self.config.max_bad_steps}); lower optim.ref_lr, or look for bad images"
            )

    def _figures(self) -> dict[str, Tensor]:
        """Counters that a checkpoint keeps, so that an interrupted tick ends with the same line."""
        return {"bad_steps": self.bad_steps, "tick": self.tick}

    def _metadata(self) -> dict[str, str]:
        return {
            "model": self.config.net.to_json(),
            "encoder": self.config.encoder.to_json(),
            "data": self.config.data.source,
        }

    def _save_snapshots(self) -> None:
        if distributed.rank() == 0:
            dtype = getattr(torch, self.config.ema.dtype)
            self.ema.save_snapshots(self.run_dir / "snapshots", dtype, self._metadata())

    def _save_checkpoint(self) -> None:
        checkpoint.save(
            self.run_dir / "checkpoints",
            self.nimg,
            self.net,
            self.optimizer,
            self.ema,
            self._figures(),
        )

    def _save_weights(self) -> None:
        if distributed.rank() == 0:
            extra = {**self._metadata(), "run": self.run, "nimg": str(self.nimg), "average": "none"}
            extra.pop("model")
            self.net.save(self.run_dir / "last.safetensors", extra)


def check_world(config: RunConfig, world_size: int) -> None:
    """Raise ValueError unless the batch divides among the processes."""
    if config.batch_size % world_size:
        raise ValueError(
            f"batch_size must be a multiple of the number of processes, got {config.batch_size} for"
            f" {world_size}"
        )


def check_run(config: RunConfig, run_dir: Path) -> None:
    """Raise ValueError if the folder is in use by something else."""
    saved = run_dir / "config.yaml"
    if saved.is_file():
        different = differing_keys(load_config(str(saved)), config)
        if different:
            raise ValueError(
                f"{run_dir} belongs to a run of another configuration: {', '.join(different[:3])}"
                "; give another --out, or the configuration of that run"
            )
    elif any((run_dir / name).exists() for name in ("snapshots", "checkpoints")):
        raise ValueError(f"{run_dir} holds snapshots but no config.yaml; give another --out")


def open_run(config: RunConfig, run_dir: Path) -> str:
    """Make the folder on rank 0 and record the configuration; returns the identifier of the run."""
    run = ""
    if distributed.rank() == 0:
        identity = run_dir / "run.json"
        if not identity.is_file():
            with replacing(identity) as file:
                json.dump({"run": secrets.token_hex(4)}, file)
        run = json.loads(identity.read_text())["run"]
        with replacing(run_dir / "config.yaml") as file:
            file.write(config.to_yaml())
    return distributed.from_rank_zero(run)
