"""Lightning: one callback averages the weights, saves snapshots, and validates with an average.

    python examples/lightning_callback.py RUN

trains for half of the epochs, continues from Lightning's checkpoint as after a crash, rebuilds
averages of other lengths from RUN, and prints the validation loss of each next to that of the raw
weights.
"""

import argparse
import logging
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from edm2lite.ema import list_snapshots, reconstruct
from edm2lite.integrations.lightning import EMACallback


class Regression(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.net(x), y + torch.randn_like(y))

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("loss", nn.functional.mse_loss(self.net(x), y))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def trainer(run: Path, epochs: int) -> tuple[pl.Trainer, EMACallback]:
    callback = EMACallback(run, snapshot_nimg=2000, evaluate_with=0.10)
    return pl.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=2,
        callbacks=[callback, pl.callbacks.ModelCheckpoint(run, filename="last")],
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    ), callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="new folder for the snapshots")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    pl.seed_everything(0)
    x = torch.randn(9000, 8)
    y = (x[:, :4] * x[:, 4:]).sum(1, keepdim=True).tanh()
    train = DataLoader(TensorDataset(x[:5000], y[:5000]), 32, shuffle=True)
    val = DataLoader(TensorDataset(x[5000:], y[5000:]), 4000)

    trainer(args.run, epochs=4)[0].fit(Regression(), train, val)
    fit, callback = trainer(args.run, epochs=8)
    fit.fit(model := Regression(), train, val, ckpt_path=args.run / "last.ckpt")

    print(f"{callback.nimg} samples, {len(list_snapshots(args.run))} snapshots of two lengths")
    print(f"last validation in the fit, with sigma_rel 0.10: {fit.callback_metrics['loss']:.4f}")
    print("weights         validation loss")
    results = reconstruct(args.run, sigma_rel=[0.05, 0.10, 0.20])
    averages = {f"sigma_rel {result.sigma_rel:.2f}": result.state_dict for result in results}
    for name, weights in {"raw": model.state_dict(), **averages}.items():
        model.load_state_dict(weights)
        print(f"{name:14}  {nn.functional.mse_loss(model.net(x[5000:]), y[5000:]):15.4f}")


if __name__ == "__main__":
    main()
