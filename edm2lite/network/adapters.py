"""Low-rank adapters (LoRA, arXiv 2106.09685): W + s B A in place of the stored weight of a layer.

The sum stands where the stored weight stood, so a magnitude-preserving layer normalizes it as ever
(Eq. 47): rows turn and do not grow, and magnitudes stay 1. That is DoRA with its magnitudes frozen.
A layer is adapted by a parametrization of torch, whatever its class: a linear layer, a convolution,
or one of yours with a ``weight`` [out, in, ...].

Note [scale of A]
    Rows of A are orthogonal and as long as rows of the weight are by design: of RMS 1 in
    magnitude-preserving layers, where forced weight normalization holds them at that, of L2 norm 1
    in plain ones. A step of Adam in B then turns every row by about as much, whatever its length;
    and at full rank with s = 1 / sqrt(fan_in), the first step of SGD is that on W itself.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from edm2lite.network.layers import MPConv
from edm2lite.network.low_rank import Factors
from edm2lite.seeding import Purpose, rng

_ORIGINAL = ".parametrizations.weight.original"


@dataclass(frozen=True, kw_only=True)
class LayerRank:
    """Rank and scale of the adapters of some layers.

    Attributes:
        pattern: Regular expression that is found in the names of the layers; empty for all.
        rank: Largest rank r; a layer has no higher one than its weight can have.
        alpha: Numerator of the scale s = alpha / r. [default: r, so that s = 1]

    Raises:
        ValueError: If the pattern is no regular expression, or a number is out of range.

    Example:
        >>> LayerRank(pattern="attn_", rank=4, alpha=8).scale(rank=4)
        2.0
    """

    pattern: str = ""
    rank: int = 4
    alpha: float | None = None

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(
                f"pattern must be a regular expression, got {self.pattern!r} ({error})"
            ) from None
        if not 1 <= self.rank <= 65536:
            raise ValueError(f"rank must lie between 1 and 65536, got {self.rank}")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha must be positive, got {self.alpha}")

    def scale(self, rank: int) -> float:
        """S of a layer of this rank."""
        return 1.0 if self.alpha is None else self.alpha / rank


class LowRank(nn.Module):
    """The parametrization ``W -> W + s B A`` of a weight; B is 0 at the start.

    Args:
        weight: [out, in, ...] weight to adapt, of which shape, device and type count.
        rank: Rank r, at most that of the weight.
        scale: Factor s.
        row_norm: L2 norm of the rows of A, see Note [scale of A].
        is_fixed: Whether :func:`edm2lite.network.layers.normalize_weights_` holds rows of A at
            RMS 1.
        generator: Source of the random numbers in A.

    Example:
        >>> layer = MPConv(8, 4)
        >>> adapter = LowRank(layer.weight, 2, 1.0, row_norm=8**0.5)
        >>> adapter.down.shape, adapter.up.shape, bool(adapter(layer.weight).equal(layer.weight))
        (torch.Size([2, 8]), torch.Size([4, 2]), True)
    """

    def __init__(
        self,
        weight: Tensor,
        rank: int,
        scale: float,
        *,
        row_norm: float = 1.0,
        is_fixed: bool = False,
        generator: np.random.Generator | None = None,
    ):
        super().__init__()
        self.scale, self.is_fixed = scale, is_fixed
        generator = generator or np.random.default_rng(0)
        columns = generator.standard_normal((weight[0].numel(), rank))
        rows = torch.from_numpy(np.linalg.qr(columns)[0].T * row_norm)
        self.down = nn.Parameter(rows.reshape(rank, *weight.shape[1:]).to(weight))
        self.up = nn.Parameter(weight.new_zeros(len(weight), rank))
        self.average: Tensor | None = None  # stands for s B A while it is set

    @property
    def factors(self) -> Factors:
        """A, B and s."""
        return Factors(self.down, self.up, self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        """[out, in, ...] -> the same shape: the weight that the layer computes with."""
        delta = self.factors.delta() if self.average is None else self.average
        return weight + delta.to(weight.dtype)

    def fixed_length_weights(self) -> list[nn.Parameter]:
        """A, if its rows have a fixed length."""
        return [self.down] if self.is_fixed else []


def adaptable_layers(net: nn.Module) -> dict[str, nn.Module]:
    """Name -> layer of every linear layer and convolution, adapted or not.

    These are the modules with a parameter ``weight`` [out, in] or [out, in, k, k], but for tables
    of embeddings.

    Example:
        >>> list(adaptable_layers(nn.Sequential(nn.Linear(4, 8), nn.SiLU(), MPConv(8, 4))))
        ['0', '2']
    """
    return {
        name: module
        for name, module in net.named_modules()
        if not isinstance(module, nn.Embedding | parametrize.ParametrizationList)
        and (weight := _stored(module)) is not None
        and weight.ndim >= 2
    }


def _stored(module: nn.Module) -> Tensor | None:
    """The parameter ``weight`` of a layer, without what adapters add."""
    if parametrize.is_parametrized(module, "weight"):
        return module.get_submodule("parametrizations.weight")._parameters.get("original")
    return module._parameters.get("weight")


def add_low_rank(
    net: nn.Module, layers: Sequence[LayerRank] = (LayerRank(),), *, seed: int = 0, prefix: str = ""
) -> dict[str, LowRank]:
    """Adapt layers of a network, and freeze everything else; the output stays as it is.

    Args:
        net: The network, whose parameters require no gradient afterwards.
        layers: Which layers get which rank: the first entry whose pattern is found in the name of a
            layer decides, and a layer that none is found in is not adapted.
        seed: Seed of the random numbers in A.
        prefix: What names of layers begin with to be adapted.

    Returns:
        Name of each adapted layer -> its adapter.

    Raises:
        ValueError: If a pattern is found in no layer, or a layer is adapted already.

    Example:
        >>> net = nn.Sequential(MPConv(64, 8), nn.SiLU(), MPConv(8, 64))
        >>> adapters = add_low_rank(net, [LayerRank(pattern="^2$", rank=3)])
        >>> list(adapters), [name for name, p in net.named_parameters() if p.requires_grad]
        (['2'], ['2.parametrizations.weight.0.down', '2.parametrizations.weight.0.up'])
    """
    found = {n: m for n, m in adaptable_layers(net).items() if n.startswith(prefix)}
    chosen: dict[str, LayerRank] = {}
    for entry in layers:
        names = [name for name in found if re.search(entry.pattern, name)]
        if not names:
            raise ValueError(
                f"a pattern must be found in the name of a layer, {entry.pattern!r} is in none of"
                f" {', '.join(list(found)[:3])}, ..."
            )
        chosen.update({name: entry for name in names if name not in chosen})
    if adapted := [name for name in chosen if parametrize.is_parametrized(found[name], "weight")]:
        raise ValueError(f"a layer must be adapted once, {adapted[0]} is already")
    net.requires_grad_(False)
    return {
        name: _adapted(found[name], chosen[name], seed, name) for name in found if name in chosen
    }


def _adapted(layer: nn.Module, entry: LayerRank, seed: int, name: str) -> LowRank:
    weight = _stored(layer)
    assert weight is not None, name
    fan_in = weight[0].numel()
    rank = min(entry.rank, len(weight), fan_in)
    adapter = LowRank(
        weight,
        rank,
        entry.scale(rank),
        row_norm=math.sqrt(fan_in) if isinstance(layer, MPConv) else 1.0,
        is_fixed=isinstance(layer, MPConv) and layer.has_fixed_length,
        generator=rng(seed, zlib.crc32(name.encode()), Purpose.ADAPTER),
    )
    parametrize.register_parametrization(layer, "weight", adapter)
    return adapter


def low_rank_layers(net: nn.Module) -> dict[str, LowRank]:
    """Name of each adapted layer -> its adapter.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8))
        >>> _ = add_low_rank(net)
        >>> {name: adapter.down.shape for name, adapter in low_rank_layers(net).items()}
        {'0': torch.Size([4, 4])}
    """
    named = [(name, m) for name, m in net.named_modules() if isinstance(m, LowRank)]
    return {name.partition(".parametrizations.")[0]: module for name, module in named}


def deltas_of(net: nn.Module) -> dict[str, Tensor]:
    """Name of each adapted layer -> what is added to its weight, s B A, without gradients.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8))
        >>> _ = add_low_rank(net)
        >>> {name: delta.shape for name, delta in deltas_of(net).items()}
        {'0': torch.Size([8, 4])}
    """
    with torch.no_grad():
        return {name: layer.factors.delta() for name, layer in low_rank_layers(net).items()}


def merged_state_dict(net: nn.Module) -> dict[str, Tensor]:
    """The state dict of the network without adapters that computes the same.

    Of a network without adapters it is the state dict itself.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8))
        >>> _ = add_low_rank(net)
        >>> sorted(merged_state_dict(net))
        ['0.bias', '0.weight']
    """
    return dict(_merged(net.state_dict(), deltas_of(net)))


def _merged(
    state: Mapping[str, Tensor], deltas: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    own = tuple(f"{name}.parametrizations." for name in deltas)
    for name, value in state.items():
        if name.endswith(_ORIGINAL):
            layer = name.removesuffix(_ORIGINAL)
            yield f"{layer}.weight", value + deltas[layer].to(value.dtype)
        elif not name.startswith(own):
            yield name, value


def add_deltas(
    tensors: Mapping[str, Tensor], deltas: Mapping[str, Tensor], strength: float, origin: str
) -> dict[str, Tensor]:
    """A state dict with ``strength`` times each delta added to the weight of its layer.

    Args:
        tensors: State dict of the network, which stays as it is.
        deltas: Name of each layer -> what is added to its weight.
        strength: Factor of the deltas; at 0 all weights are those of the network to the last bit.
        origin: Name of the adapter in messages.

    Raises:
        ValueError: If a layer is missing, or its weight is of another shape.

    Example:
        >>> tensors = {"0.weight": torch.ones(1, 2)}
        >>> add_deltas(tensors, {"0": torch.tensor([[1.0, -2.0]])}, 0.5, "a.safetensors")
        {'0.weight': tensor([[1.5000, 0.0000]])}
    """
    merged = dict(tensors)
    for layer, delta in deltas.items():
        weight = merged.get(f"{layer}.weight")
        if weight is None:
            raise ValueError(
                f"{origin} must adapt layers of the model, which has no {layer}; give the model"
                " that it was trained on"
            )
        if weight.shape != delta.shape:
            raise ValueError(
                f"{origin} must add to weights of their own shape, {layer} has {[*weight.shape]} in"
                f" the model and {[*delta.shape]} in the adapter"
            )
        if strength:
            total = weight.float() + strength * delta.to(weight.device).float()
            merged[f"{layer}.weight"] = total.to(weight.dtype)
    return merged
