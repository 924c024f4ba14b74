"""A small MLP: the best EMA length, chosen after training by validation loss.

    python examples/mlp_regression.py RUN

fits scikit-learn's Friedman data with noise, rebuilds twelve lengths in one pass over the snapshots
in RUN, chooses the one with the lowest validation loss, and reports on test data how much better it
is than the weights at the end of training.
"""

import argparse

import torch
from sklearn.datasets import make_friedman1
from torch import nn

from edm2lite.ema import PowerFunctionEMA, reconstruct


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="new folder for the snapshots")
    args = parser.parse_args()
    torch.manual_seed(0)
    x, y = (torch.tensor(a, dtype=torch.float32) for a in make_friedman1(6000, random_state=0))
    y = ((y - y.mean()) / y.std())[:, None]
    noisy = y + 0.5 * torch.randn_like(y)
    train, val, test = slice(0, 2000), slice(2000, 3000), slice(3000, 6000)

    model = nn.Sequential(
        nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    ema, nimg = PowerFunctionEMA(model), 0
    for _ in range(40):
        for rows in torch.randperm(2000).split(50):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[train][rows]), noisy[train][rows]).backward()
            optimizer.step()
            ema.update(nimg := nimg + len(rows))
        ema.save_snapshots(f"{args.run}/snapshots")

    @torch.no_grad()
    def loss(part: slice, truth: torch.Tensor) -> float:
        return nn.functional.mse_loss(model(x[part]), truth[part]).item()

    print("sigma_rel  validation loss  rebuilt to within")
    print(f"      raw  {loss(val, noisy):15.4f}")
    raw = loss(test, y)
    losses = []
    for result in reconstruct(args.run, sigma_rel=[0.02 * k for k in range(1, 13)]):
        model.load_state_dict(result.state_dict)
        losses.append((loss(val, noisy), result))
        print(f"{result.sigma_rel:9.2f}  {losses[-1][0]:15.4f}  {result.predicted_error:17.0e}")
    _, best = min(losses, key=lambda pair: pair[0])
    model.load_state_dict(best.state_dict)
    gain = 1 - loss(test, y) / raw
    print(f"best by validation: sigma_rel {best.sigma_rel:.2f}")
    print(
        f"test error against the truth: {loss(test, y):.4f}, raw weights {raw:.4f}: {gain:.0%} less"
    )


if __name__ == "__main__":
    main()
