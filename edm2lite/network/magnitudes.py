"""How large activations, weights and updates are, layer by layer, against the 1 of the design.

The magnitude of an activation is the RMS of each feature over the pixels (Eq. 3 of arXiv
2312.02696), averaged over samples, then over features. :class:`Meter` measures it in any module;
:func:`edm2lite.diffusion.measure.measure_denoiser` calls it on noised images.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from edm2lite.jsonlines import read_lines
from edm2lite.network.backbone import Backbone
from edm2lite.network.layers import gather

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Magnitude:
    """What was measured of one layer or block.

    Attributes:
        name: Path of the module.
        resolution: Pixels of its output, such as ``8x8``; the number of tokens; empty for vectors.
        expected: The magnitude by design: 1, a share of a sum, or an absolute gain.
        activation: Mean over features of the output's magnitude.
        largest: Largest magnitude of a feature.
        weight: RMS of the stored weights, 1 by design; of a layer that does not normalize its
            weights, their RMS times the root of its fan-in. None for a block.
        update: RMS of the last change of the weights over their RMS; None if not known.

    Example:
        >>> m = Magnitude("unet.enc.8x8_block0", "8x8", expected=1.0, activation=5.0, largest=9.0)
        >>> m.bucket, m.is_block, m.leaves_regime(limit=4)
        ('enc 8x8', True, True)
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
        """Whether this is a block, which has no weights of its own."""
        return self.weight is None

    @property
    def bucket(self) -> str:
        """The part of the network that it lies in, and its resolution: ``enc 8x8``."""
        parts = self.name.split(".")
        return f"{parts[1] if len(parts) > 2 else parts[0]} {self.resolution}".strip()

    def leaves_regime(self, limit: float) -> bool:
        """Whether it is off by more than a factor ``limit``, or not finite; a gain of 0 is not."""
        ratios = [] if self.weight is None else [self.weight]
        if self.expected > 0:
            ratios.append(self.activation / self.expected)
        return any(not 1 / limit <= ratio <= limit for ratio in ratios)


class Meter:
    """Measures every forward pass of ``module`` inside the ``with`` block; changes nothing.

    It measures every layer, that is every module with a parameter ``weight``, and every block:
    those that a :class:`edm2lite.network.backbone.Backbone` names, and modules that consist of
    layers alone. Any number of passes may be made; each sample counts once. Nothing is read from
    the device until :meth:`magnitudes`.

    Args:
        module: The network, or a part of it.

    Example:
        >>> from edm2lite.network.layers import MPConv
        >>> net = nn.Sequential(MPConv(16, 32), nn.Linear(32, 8))
        >>> with Meter(net) as meter:
        ...     y = net(torch.randn(4096, 16))
        >>> [(m.name, f"{m.activation:.1f}") for m in meter.magnitudes()]
        [('', '0.6'), ('0', '1.0'), ('1', '0.6')]
    """

    def __init__(self, module: nn.Module):
        blocks = _blocks(module)
        self._modules = {
            name: m for name, m in module.named_modules() if m in blocks or _is_layer(m)
        }
        self._sums: dict[str, Tensor] = {}  # [C] over samples, of RMS over pixels or of squares
        self._counts: dict[str, int] = {}
        self._expected: dict[str, Tensor] = {}
        self._resolutions: dict[str, tuple[int, ...]] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Meter:
        for name, module in self._modules.items():

            def hook(
                module: nn.Module, args: Any, kwargs: Any, output: object, name: str = name
            ) -> None:
                if isinstance(output, Tensor):
                    self._add(name, module, output, _expected(module, args, kwargs))

            self._handles.append(module.register_forward_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @torch.no_grad()
    def _add(self, name: str, module: nn.Module, output: Tensor, expected: float | Tensor) -> None:
        square = output.detach().float().square()
        if _features_last(module, output):
            square = square.movedim(-1, 1)  # [N, C, ...]
        # A vector has no pixels: its samples are averaged over before the root instead.
        value = square.sum(0) if square.ndim == 2 else square.flatten(2).mean(2).sqrt().sum(0)
        self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value
        self._counts[name] = self._counts.get(name, 0) + len(output)
        self._expected[name] = torch.as_tensor(expected).detach().float().abs()
        self._resolutions[name] = tuple(square.shape[2:])

    def magnitudes(self, updates: Mapping[str, float] | None = None) -> list[Magnitude]:
        """What was measured, in the order of the module's definition.

        Args:
            updates: Result of :func:`relative_updates`, by the path of the layer.

        Returns:
            One entry for every layer and block that ran.
        """
        found = []
        for name, module in self._modules.items():
            if name not in self._sums:
                continue
            mean, resolution = self._sums[name] / self._counts[name], self._resolutions[name]
            if not resolution:
                mean = mean.sqrt()
            found.append(
                Magnitude(
                    name,
                    "x".join(str(side) for side in resolution),
                    self._expected[name].item(),
                    mean.mean().item(),
                    mean.max().item(),
                    _weight_rms(module) if _is_layer(module) else None,
                    None if updates is None else updates.get(name),
                )
            )
        return found


def _expected(module: nn.Module, args: Any, kwargs: Any) -> float | Tensor:
    """The magnitude that a layer's output has by design; 1 for others, which state none."""
    stated = getattr(module, "expected_rms", None)
    expected: float | Tensor = 1.0 if stated is None else stated(*args, **kwargs)
    return expected


def to_record(nimg: int, magnitudes: Sequence[Magnitude]) -> dict[str, Any]:
    """What one line of the file ``magnitudes.jsonl`` of a run holds.

    Example:
        >>> to_record(64, [Magnitude("a", "", 1.0, 0.9, 1.1)])["layers"][0]["name"]
        'a'
    """
    return {"nimg": nimg, "layers": [dataclasses.asdict(m) for m in magnitudes]}


def read_log(path: Path) -> list[tuple[int, list[Magnitude]]]:
    """(nimg, magnitudes) of every line of a ``magnitudes.jsonl``; empty if there is no file.

    Lines that were cut short are left out, and logged.

    Raises:
        ValueError: If a line was not made by :func:`to_record`.

    Example:
        >>> read_log(Path("no-such-run/magnitudes.jsonl"))
        []
    """
    lines, notices = read_lines(path)
    for notice in notices:
        logger.warning("%s", notice)
    try:
        return [(line["nimg"], [Magnitude(**m) for m in line["layers"]]) for line in lines]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold lines of magnitudes, found {error}") from error


def copies(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the weights of all layers by their path, for :func:`relative_updates`.

    Example:
        >>> list(copies(nn.Sequential(nn.Linear(2, 2), nn.SiLU(), nn.Linear(2, 1))))
        ['0', '2']
    """
    return {name: _weight(layer).clone() for name, layer in _layers(module).items()}


def relative_updates(module: nn.Module, before: Mapping[str, Tensor]) -> dict[str, float]:
    """RMS change of the weights of each layer since ``before``, relative to their RMS then.

    Layers whose weights were all zero are left out.

    Args:
        module: The network after the change.
        before: Result of :func:`copies` before it.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2))
        >>> before = copies(net)
        >>> _ = net[0].weight.data.mul_(1.25)
        >>> f"{relative_updates(net, before)['0']:.4f}"
        '0.2500'
    """
    change = {}
    for name, old in before.items():
        step = (_weight(module.get_submodule(name)) - old).float().square().mean()
        size = gather(old.float().square().mean()).item()
        if size > 0:
            change[name] = math.sqrt(gather(step).item() / size)
    return change


def by_bucket(magnitudes: Iterable[Magnitude]) -> dict[str, dict[str, float]]:
    """Mean and largest activation of the blocks, by part of the network and resolution.

    Example:
        >>> by_bucket([Magnitude("net.enc.a", "8x8", 1.0, 0.9, 1.2),
        ...            Magnitude("net.enc.b", "8x8", 1.0, 1.1, 1.5)])
        {'enc 8x8': {'mean': 1.0, 'max': 1.5}}
    """
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


def _layers(net: nn.Module) -> dict[str, nn.Module]:
    """Modules with a parameter ``weight`` of their own, adapted or not."""
    return {name: m for name, m in net.named_modules() if _is_layer(m)}


def _is_layer(module: nn.Module) -> bool:
    own = isinstance(getattr(module, "weight", None), nn.Parameter)
    return own or is_parametrized(module, "weight")


def _blocks(net: nn.Module) -> set[nn.Module]:
    """The blocks that backbones within ``net`` name, and modules that consist of layers alone."""
    blocks = {m for m in net.modules() if (c := list(m.children())) and all(map(_is_layer, c))}
    for module in net.modules():
        if isinstance(module, Backbone):
            blocks |= set(module.blocks())
    return blocks


def _weight(layer: nn.Module) -> Tensor:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def _weight_rms(layer: nn.Module) -> float:
    weight = _weight(layer)
    rms = gather(weight.float().square().mean()).sqrt().item()
    return rms if hasattr(layer, "expected_rms") else rms * math.sqrt(weight[0].numel())


def _features_last(module: nn.Module, output: Tensor) -> bool:
    """Whether features are the last dimension of an output, not its channels [N, C, ...]."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor) and _is_layer(module) and weight.ndim > 1:
        return weight.ndim == 2  # a matrix is applied to the last dimension
    return output.ndim <= 3  # [N, C], or tokens [N, T, C]
