"""How large activations, weights and updates are, layer by layer, against the 1 of the design.

The magnitude of an activation is the RMS of each feature over the pixels (Eq. 3 of arXiv
2312.02696), averaged over samples, then over features. Works on any module built from
:class:`edm2lite.network.layers.MPConv`: every such layer is measured, and every block, that is a
module whose children are all such layers.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from edm2lite.network.conditioning import Conditioning
from edm2lite.network.layers import MPConv, whole


@dataclass(frozen=True)
class Magnitude:
    """What was measured of one layer or block.

    Attributes:
        name: Path of the module.
        resolution: ``8x8`` of its output, or empty for vectors.
        expected: The magnitude by design: 1, a share of a sum, or an absolute gain.
        activation: Mean over features of the output's magnitude.
        largest: Largest magnitude of a feature.
        weight: RMS of the stored weights; None for a block.
        update: RMS of the last change of the weights over their RMS; None if not known.
    """

    name: str
    resolution: str
    expected: float
    activation: float
    largest: float
    weight: float | None = None
    update: float | None = None

    @property
    def is_block(self) -> bool:
        return self.weight is None

    @property
    def bucket(self) -> str:
        """Where it lies: ``enc 8x8``; the first part of its path where there is no enc or dec."""
        parts = self.name.split(".")
        side = next((part for part in parts if part in ("enc", "dec")), parts[0])
        return f"{side} {self.resolution}".strip()

    def leaves_regime(self, limit: float) -> bool:
        """Whether it is off by more than a factor ``limit``, or not finite; a gain of 0 is not."""
        ratios = [] if self.weight is None else [self.weight]
        if self.expected > 0:
            ratios.append(self.activation / self.expected)
        return any(not 1 / limit <= ratio <= limit for ratio in ratios)


class Meter:
    """Measures every forward pass of ``module`` inside the ``with`` block; changes nothing.

    Any number of passes; each sample counts once. Nothing is read from the device until
    :meth:`magnitudes`.
    """

    def __init__(self, module: nn.Module):
        self._modules = {name: m for name, m in module.named_modules() if _measured(m)}
        self._sums: dict[str, Tensor] = {}  # [C] over samples, of RMS over pixels or of squares
        self._counts: dict[str, int] = {}
        self._expected: dict[str, Tensor] = {}
        self._shapes: dict[str, torch.Size] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Meter:
        for name, module in self._modules.items():

            def hook(
                module: nn.Module, args: Any, kwargs: Any, output: Tensor, name: str = name
            ) -> None:
                expected = 1.0
                if isinstance(module, MPConv):
                    expected = module.out_rms * kwargs.get("gain", args[1] if args[1:] else 1.0)
                self._add(name, output, expected)

            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _add(self, name: str, output: Tensor, expected: float | Tensor) -> None:
        square = output.detach().float().square()
        # A vector has no pixels: its samples are averaged over before the root instead.
        value = square.sum(0) if square.ndim == 2 else square.flatten(2).mean(2).sqrt().sum(0)
        self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._counts[name] = self._counts.get(name, 0) + len(output)
        self._expected[name] = torch.as_tensor(expected).detach().float().abs()
        self._shapes[name] = output.shape

    def magnitudes(self, updates: Mapping[str, float] | None = None) -> list[Magnitude]:
        """In the order of the module's definition; layers that never ran are left out.

        Args:
            updates: From :func:`relative_updates`, by the path of the layer.
        """
        found = []
        for name, module in self._modules.items():
            if name not in self._sums:
                continue
            mean, shape = self._sums[name] / self._counts[name], self._shapes[name]
            if len(shape) == 2:
                mean = mean.sqrt()
            weight = None
            if isinstance(module, MPConv):
                weight = whole(module.weight.detach().float().square().mean()).sqrt().item()
            found.append(
                Magnitude(
                    name,
                    "x".join(str(side) for side in shape[2:]),
                    self._expected[name].item(),
                    mean.mean().item(),
                    mean.max().item(),
                    weight,
                    None if updates is None else updates.get(name),
                )
            )
        return found


def measure_denoiser(
    denoise: nn.Module,
    images: Tensor,
    conditioning: Conditioning | None = None,
    *,
    P_mean: float = -0.4,
    P_std: float = 1.0,
    batch_size: int = 64,
) -> list[Magnitude]:
    """Magnitudes within a denoiser ``(x, sigma, conditioning)`` for noised images.

    Noise levels are the quantiles of ``ln sigma ~ N(P_mean, P_std**2)``, in random order; what is
    random comes from a fixed seed.

    Args:
        images: [N, C, H, W] of standard deviation sigma_data, on the device of the network.
        conditioning: What the network is told about each image.
    """
    generator = torch.Generator().manual_seed(0)
    normal = NormalDist(P_mean, P_std)
    levels = torch.tensor([normal.inv_cdf((i + 0.5) / len(images)) for i in range(len(images))])
    sigma = levels.exp()[torch.randperm(len(images), generator=generator)].to(images.device)
    noise = torch.randn(images.shape, generator=generator).to(images.device)
    x = images + sigma[:, None, None, None] * noise
    told = conditioning or Conditioning()
    with Meter(denoise) as meter, torch.no_grad():
        for begin in range(0, len(images), batch_size):
            part = slice(begin, begin + batch_size)
            denoise(x[part], sigma[part], told.rows(part))
    return meter.magnitudes()


def to_line(nimg: int, magnitudes: Sequence[Magnitude]) -> str:
    """One line of a run's ``magnitudes.jsonl``."""
    return json.dumps({"nimg": nimg, "layers": [dataclasses.asdict(m) for m in magnitudes]})


def read_log(path: Path) -> list[tuple[int, list[Magnitude]]]:
    """(nimg, magnitudes) of every line of a ``magnitudes.jsonl``; empty if there is no file.

    Raises:
        ValueError: A line is not one that :func:`to_line` wrote.
    """
    if not path.is_file():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(line["nimg"], [Magnitude(**m) for m in line["layers"]]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold lines of magnitudes, found {error}") from error


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights of all layers by their path, for :func:`relative_updates`."""
    return {
        name: m.weight.detach().clone()
        for name, m in module.named_modules()
        if isinstance(m, MPConv)
    }


def relative_updates(module: nn.Module, before: Mapping[str, Tensor]) -> dict[str, float]:
    """RMS change of each layer's weights since ``before``, relative to their RMS then."""
    change = {}
    for name, old in before.items():
        new = module.get_submodule(name).weight
        assert isinstance(new, Tensor)
        ratio = (new.detach() - old).float().square().mean() / old.float().square().mean()
        change[name] = whole(ratio).sqrt().item()
    return change


def by_bucket(magnitudes: Iterable[Magnitude]) -> dict[str, dict[str, float]]:
    """Mean and largest activation of the blocks, by encoder or decoder and resolution."""
    groups: dict[str, list[Magnitude]] = {}
    for magnitude in magnitudes:
        if magnitude.is_block:
            groups.setdefault(magnitude.bucket, []).append(magnitude)
    return {
        bucket: {
            "mean": sum(m.activation for m in group) / len(group),
            "max": max(m.largest for m in group),
        }
        for bucket, group in groups.items()
    }


def _measured(module: nn.Module) -> bool:
    children = list(module.children())
    return isinstance(module, MPConv) or (
        bool(children) and all(isinstance(child, MPConv) for child in children)
    )
