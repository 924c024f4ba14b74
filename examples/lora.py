"""LoRA: average what it adds to the weights, s B A, or average the factors A and B.

    python examples/lora.py RUN

teaches a small transformer that counts up to count down, and prints the loss of both kinds of
averages, rebuilt from RUN/merged and RUN/factors, and their difference relative to s B A.
"""

import argparse
import copy

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn.utils import get_total_norm

from edm2lite.ema import PowerFunctionEMA, reconstruct
from edm2lite.integrations.lora import add_deltas, merged_deltas

STEPS, VOCABULARY, LENGTH, WIDTH = 400, 24, 16, 32


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:  # mean loss over the next tokens
        x = self.tokens(rows[:, :-1]) + self.places.weight[:-1]
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0])
        x = x + self.down(torch.relu(self.up(x)))
        return nn.functional.cross_entropy(self.head(x).flatten(0, 1), rows[:, 1:].flatten())


def sequences(num: int, direction: int) -> torch.Tensor:  # counting by a step, with random jumps
    rows, step = torch.randint(VOCABULARY, (num, LENGTH)), direction * torch.randint(1, 4, (num,))
    for k in range(1, LENGTH):
        rows[:, k] = torch.where(torch.rand(num) < 0.25, rows[:, k], rows[:, k - 1] + step)
    return rows % VOCABULARY


def training(model: nn.Module, direction: int, lr: float):
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        model(sequences(16, direction)).backward()
        optimizer.step()
        yield step


parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("run", help="new folder for the snapshots")
run = parser.parse_args().run
torch.manual_seed(0)
list(training(base := Transformer(), direction=1, lr=3e-3))
model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, target_modules="qkv|out|up|down"))
factors = PowerFunctionEMA({n: p for n, p in model.named_parameters() if p.requires_grad})
merged = PowerFunctionEMA(merged_deltas(model))
for step in training(model, direction=-1, lr=1e-2):
    factors.update(16 * step)
    merged.update(16 * step, merged_deltas(model))
    if step % (STEPS // 40) == 0:
        factors.save_snapshots(f"{run}/factors/snapshots")
        merged.save_snapshots(f"{run}/merged/snapshots")

rows, lengths = sequences(2000, -1), [0.05, 0.10, 0.20, 0.25]
print("sigma_rel  loss, average of s B A  loss, average of A and B  apart by")
print(f"      raw  {model(rows):22.4f}")
both = (reconstruct(f"{run}/{kind}", sigma_rel=lengths) for kind in ("merged", "factors"))
for delta, parts in zip(*both, strict=True):
    add_deltas(averaged := copy.deepcopy(base), delta.state_dict)
    model.load_state_dict(parts.state_dict, strict=False)
    gaps = [d - delta.state_dict[n] for n, d in merged_deltas(model).items()]
    apart = get_total_norm(gaps) / get_total_norm(delta.state_dict.values())
    print(f"{delta.sigma_rel:9.2f}  {averaged(rows):22.4f}  {model(rows):24.4f}  {apart:8.2%}")
