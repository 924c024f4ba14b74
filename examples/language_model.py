"""Learning rate decays after training: a small language model on Python's standard library.

    python examples/language_model.py RUN [--seeds 0,1,2] [--tiny]

trains a character transformer of 0.6 million parameters at a constant learning rate and saves two
averages of its weights from time to time. Ten decays of the rate are emulated from these files, and
three runs are really decayed, from the state that training had where their decay begins. A table
and a picture compare validation losses. About two minutes per seed on one core.
"""

from __future__ import annotations

import argparse
import copy
import json
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edm2lite.ema import PowerFunctionEMA, reconstruct
from edm2lite.ema.decays import NamedDecay

EMULATED = (
    "linear:0.05", "linear:0.1", "linear:0.25", "linear:0.5", "cosine:0.1", "cosine:0.25",
    "cosine:0.5", "1-sqrt:0.1", "1-sqrt:0.25", "square:0.25",
)  # fmt: skip
DECAYED = ("linear:0.1", "linear:0.25", "1-sqrt:0.25")
CONSTANT = "constant rate"
VOCABULARY, CONTEXT, WARMUP = 128, 64, 100
BATCH, STEPS, TINY_STEPS, WIDTH, TINY_WIDTH = 8, 1200, 60, 128, 16
VALIDATION = 24_000  # characters


class Block(nn.Module):
    """A layer of the transformer: causal attention, then a perceptron, each added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[N, T, C] -> [N, T, C]."""
        heads = self.qkv(self.norms[0](x)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


class Transformer(nn.Module):
    """Predicts each next character from those before it."""

    def __init__(self, width: int, depth: int = 3):
        super().__init__()
        self.letters, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        """Mean loss in nats per character of rows of text, [N, T + 1]."""
        x = self.letters(text[:, :-1]) + self.places.weight[: text.shape[1] - 1]
        logits = self.head(self.norm(self.blocks(x)))
        return nn.functional.cross_entropy(logits.flatten(0, 1), text[:, 1:].flatten())


def texts() -> tuple[Tensor, Tensor]:
    """Characters to train on, and those of every tenth file to validate with."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for i, file in enumerate(files):
        parts[i % 10 == 9].append(file.read_bytes())
    train, held_out = (np.frombuffer(b"".join(part), np.uint8) % VOCABULARY for part in parts)
    return torch.from_numpy(train.astype(np.int64)), torch.from_numpy(held_out.astype(np.int64))


def rows(text: Tensor, starts: Tensor) -> Tensor:
    """Rows of CONTEXT + 1 characters from some places of a text."""
    return text[starts[:, None] + torch.arange(CONTEXT + 1)]


@torch.no_grad()
def validation_loss(model: Transformer, held_out: Tensor) -> float:
    """Mean loss over evenly spread rows of the held-out text."""
    places = torch.linspace(0, len(held_out) - CONTEXT - 1, VALIDATION // CONTEXT).long()
    losses = [model(rows(held_out, part)).item() * len(part) for part in places.split(125)]
    return sum(losses) / len(places)


class Training:
    """A training run that can be copied and continued; batches depend on seed and step."""

    def __init__(self, seed: int, width: int, text: Tensor):
        torch.manual_seed(seed)
        self.seed, self.text, self.step = seed, text, 0
        self.model = Transformer(width)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1
        )

    def run(
        self,
        until: int,
        multiplier: Callable[[float], float] = lambda step: 1.0,
        after: Callable[[int], object] = lambda step: None,
    ) -> None:
        """Train until a step; the rate is multiplied by a function of the steps that were made."""
        while self.step < until:
            generator = torch.Generator().manual_seed(1000 * self.seed + self.step * 10**6)
            starts = torch.randint(len(self.text) - CONTEXT - 1, (BATCH,), generator=generator)
            for group in self.optimizer.param_groups:
                group["lr"] = 3e-3 * min(1, (self.step + 1) / WARMUP) * multiplier(self.step)
            loss = self.model(rows(self.text, starts))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            self.step += 1
            after(self.step)

    def branch(self) -> Training:
        """A copy of the run in the state that it has."""
        return copy.deepcopy(self)


def losses_of_seed(run: Path, seed: int, steps: int, width: int) -> dict[str, float]:
    """Validation losses at the constant rate, of really decayed and of emulated runs."""
    text, held_out = texts()
    training = Training(seed, width, text)
    ema = PowerFunctionEMA(training.model, folder=run / "snapshots")
    tokens = BATCH * CONTEXT

    def after(step: int) -> None:
        ema.update(step * tokens)
        if step % (steps // 20) == 0:
            ema.save_snapshots()

    decays = {f"decayed {name}": NamedDecay.parse(name).at(steps) for name in DECAYED}
    branches = {}
    for name, decay in sorted(decays.items(), key=lambda pair: pair[1].start):
        training.run(round(decay.start), after=after)
        branches[name] = training.branch()
    training.run(steps, after=after)
    losses = {CONSTANT: validation_loss(training.model, held_out)}
    for name, branch in branches.items():
        decay = decays[name]
        branch.run(steps, lambda step, decay=decay: 1 - float(decay.cumulative(step)))
        losses[name] = validation_loss(branch.model, held_out)
    for result in reconstruct(run, decay=EMULATED):
        training.model.load_state_dict(result.state_dict)
        losses[f"emulated {result.decay}"] = validation_loss(training.model, held_out)
    return losses


def table(losses: dict[str, np.ndarray]) -> str:
    """Mean loss over seeds, gain over the constant rate with its 95 % interval, and share of it."""
    best = min((n for n in losses if n.startswith("decayed")), key=lambda n: losses[n].mean())
    gain = losses[CONSTANT] - losses[best]
    lines = [f"{'':22} {'loss':>7}  {'gain':>7} {'':>8}  of the gain of {best}"]
    for name, values in losses.items():
        gained = losses[CONSTANT] - values
        half = interval(gained)
        share = "" if name == CONSTANT else f"{gained.mean() / gain.mean():.1%}"
        lines.append(f"{name:22} {values.mean():7.4f}  {gained.mean():7.4f} +-{half:6.4f}  {share}")
    return "\n".join(lines)


def interval(values: np.ndarray) -> float:
    """Half of the 95 % interval of the mean (Student's t); nan for one value."""
    from scipy.stats import t

    if len(values) < 2:
        return float("nan")
    return float(t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / len(values) ** 0.5)


def draw(path: Path, losses: dict[str, np.ndarray]) -> None:
    """Gain over the constant rate against the length of the decay."""
    from matplotlib.figure import Figure

    figure = Figure((7, 4.2), dpi=150)
    axes = figure.add_subplot()
    colors: dict[str, str] = {}
    curves: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for name, values in losses.items():
        if name != CONSTANT:
            kind, decay = name.split(" ")
            named, gained = NamedDecay.parse(decay), losses[CONSTANT] - values
            point = (100 * named.length, gained.mean(), np.nan_to_num(interval(gained)))
            curves.setdefault((kind, str(named.shape)), []).append(point)
    for i, ((kind, shape), points) in enumerate(sorted(curves.items(), reverse=True)):
        x, y, half = np.array(sorted(points)).T
        x += 0.6 * (i - len(curves) / 2)  # beside each other, to tell them apart
        color = colors.setdefault(shape, f"C{len(colors)}")
        style, size = ("o-", 5) if kind == "emulated" else ("*", 15)
        axes.plot(x, y, style, color=color, ms=size, label=f"{shape}, {kind}", zorder=3)
        axes.vlines(x, y - half, y + half, color=color, lw=2.5, alpha=0.3)
    axes.axhline(0, color="tab:gray", ls="--", label="end of the run at a constant rate")
    axes.set_xlabel("length of the decay, % of the run")
    axes.set_ylabel("validation loss less than at the end, nats")
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", type=Path, help="new folder for the runs, table and picture")
    parser.add_argument("--seeds", default="0", help="seeds of the runs, separated by commas")
    parser.add_argument("--tiny", action="store_true", help="a tiny model for a minute's look")
    args = parser.parse_args()
    size = (TINY_STEPS, TINY_WIDTH) if args.tiny else (STEPS, WIDTH)
    found = []
    for seed in map(int, args.seeds.split(",")):
        found.append(losses_of_seed(args.run / f"seed-{seed}", seed, *size))
        (args.run / "losses.json").write_text(json.dumps(found, indent=1))
    losses = {name: np.array([one[name] for one in found]) for name in found[0]}
    print(table(losses))
    draw(args.run / "language-model.png", losses)


if __name__ == "__main__":
    main()
