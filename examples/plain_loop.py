"""Post-hoc EMA in your own PyTorch loop; the four lines that it takes are marked.

    python examples/plain_loop.py RUN

fits noisy data at a constant learning rate, and saves two averages of the weights whenever it
records its loss. Afterwards averages of other lengths are rebuilt from RUN, and the validation loss
of each is printed next to that of the weights at the end of training.
"""

import argparse

import torch
from torch import nn

from edm2lite.ema import PowerFunctionEMA, reconstruct  # line 1

STEPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", help="new folder for the snapshots")
    args = parser.parse_args()
    torch.manual_seed(0)

    def draw(num: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(num, 8)
        return x, (x[:, :4] * x[:, 4:]).sum(1, keepdim=True).tanh()

    def validation_loss() -> float:
        with torch.no_grad():
            return nn.functional.mse_loss(model(val_x), val_y).item()

    val_x, val_y = draw(4000)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    ema = PowerFunctionEMA(model, folder=f"{args.run}/snapshots")  # line 2
    batch_size, losses = 64, []
    for step in range(1, STEPS + 1):
        x, y = draw(batch_size)
        loss = nn.functional.mse_loss(model(x), y + 0.5 * torch.randn(batch_size, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(step * batch_size)  # line 3: training samples seen so far
        if step % (STEPS // 40) == 0:
            losses.append(loss.item())
            ema.save_snapshots()  # line 4

    print(f"training loss {losses[0]:.2f} to {losses[-1]:.2f}")
    print("weights         validation loss  rebuilt to within")
    print(f"raw             {validation_loss():15.4f}")
    for result in reconstruct(args.run, sigma_rel=[0.02, 0.05, 0.10, 0.15, 0.20]):
        model.load_state_dict(result.state_dict)
        error = result.predicted_error
        print(f"sigma_rel {result.sigma_rel:.2f}  {validation_loss():15.4f}  {error:17.0e}")


if __name__ == "__main__":
    main()
