"""What of a network is trained: which tensors are averaged, saved, and described how."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from edm2lite.diffusion.precond import Precond
from edm2lite.ema import PowerFunctionEMA
from edm2lite.ema.model_tensors import Source, named_tensors
from edm2lite.models.adapters import Adapter
from edm2lite.models.model import Model
from edm2lite.network.adapters import deltas_of, low_rank_layers


class Tuned(abc.ABC):
    """The trained part of a network."""

    @abc.abstractmethod
    def tracker(self, sigma_rels: Sequence[float]) -> PowerFunctionEMA:
        """Averages of it, of these lengths; the network is on its device by now."""

    @abc.abstractmethod
    def tensors(self) -> Mapping[str, Tensor]:
        """What the file of the last weights holds, live."""

    @abc.abstractmethod
    def averaged(self) -> Mapping[str, Tensor]:
        """What snapshots hold averages of, as it is now."""

    @abc.abstractmethod
    def metadata(self) -> dict[str, str]:
        """Its description in the files of a run."""


class Whole(Tuned):
    """A network that is saved as a whole, all of it trained or nearly so.

    Args:
        net: The denoiser.
    """

    def __init__(self, net: Precond):
        self._net = net

    def tracker(self, sigma_rels: Sequence[float]) -> PowerFunctionEMA:
        """Averages of the trained parameters."""
        return PowerFunctionEMA(self._net, sigma_rels)

    def tensors(self) -> Mapping[str, Tensor]:
        """The state of the network."""
        return named_tensors(self._net)

    def averaged(self) -> Mapping[str, Tensor]:
        """The trained parameters."""
        return {name: p for name, p in self._net.named_parameters() if p.requires_grad}

    def metadata(self) -> dict[str, str]:
        """Its configuration."""
        return {"model": self._net.config.to_json()}


class Added(Tuned):
    """Parameters that were added to a frozen network.

    Args:
        net: The denoiser, of which the added parameters alone require gradients.
        adapter: Kind of the adapter, the model that it belongs to, and fields that it sets.
    """

    def __init__(self, net: Precond, adapter: Adapter):
        self._net, self._adapter = net, adapter

    def tracker(self, sigma_rels: Sequence[float]) -> PowerFunctionEMA:
        """Averages of the parameters."""
        return PowerFunctionEMA(self.tensors(), sigma_rels)

    def tensors(self) -> Mapping[str, Tensor]:
        """The parameters by their names in the network."""
        return {name: p for name, p in self._net.named_parameters() if p.requires_grad}

    def averaged(self) -> Mapping[str, Tensor]:
        """The parameters."""
        return self.tensors()

    def metadata(self) -> dict[str, str]:
        """The description of an adapter."""
        return {"adapter": self._adapter.to_metadata()["adapter"]}


class Factored(Added):
    """Low-rank adapters: their factors are trained and saved, what they add is averaged."""

    def tracker(self, sigma_rels: Sequence[float]) -> PowerFunctionEMA:
        """Averages of what is added to the weights."""
        return DeltaEMA(self._net, sigma_rels)

    def tensors(self) -> Mapping[str, Tensor]:
        """The factors of every layer."""
        found: dict[str, Tensor] = {}
        for name, layer in low_rank_layers(self._net).items():
            found[f"{name}.down"], found[f"{name}.up"] = layer.down, layer.up
        return found

    def averaged(self) -> Mapping[str, Tensor]:
        """What is added to the weights."""
        return _named_deltas(self._net)


class DeltaEMA(PowerFunctionEMA):
    """Averages of what low-rank adapters add to the weights: of s B A, not of B and of A.

    The average of products is not the product of averages: they differ by the covariance of the
    factors over the averaged steps.

    Args:
        net: Network with low-rank adapters, on its device.
        sigma_rels: EMA lengths of the averages.

    Example:
        >>> import torch
        >>> from edm2lite.network.adapters import add_low_rank
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> up = add_low_rank(net)["0"].up
        >>> ema = DeltaEMA(net, [0.10])
        >>> for nimg in (64, 128):
        ...     _ = up.data.add_(1)
        ...     ema.update(nimg)
        >>> with ema.applied(0.10):
        ...     bool(net[0].weight.norm() < up + net[0].parametrizations.weight.original.norm())
        True
    """

    def __init__(self, net: nn.Module, sigma_rels: Sequence[float], **options: Any):
        self._net = net
        zeros = {n: d.new_zeros(()).expand(d.shape) for n, d in _named_deltas(net).items()}
        super().__init__(zeros, sigma_rels, **options)  # which keeps them, and no copy of deltas

    def update(self, nimg: int, source: Source | None = None) -> None:
        """Take what is added now into every average, see :meth:`PowerFunctionEMA.update`."""
        super().update(nimg, _named_deltas(self._net) if source is None else source)

    @contextlib.contextmanager
    def applied(self, sigma_rel: float) -> Iterator[None]:
        """Let the layers add an average within the block, and the product of their factors after.

        ``sigma_rel`` is one of the tracked lengths.
        """
        averages, layers = self._average(sigma_rel), low_rank_layers(self._net)
        outer, self._is_applied = self._is_applied, True
        before = {name: layer.average for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                layer.average = averages[f"{name}.delta"]
            yield
        finally:
            self._is_applied = outer
            for name, layer in layers.items():
                layer.average = before[name]


def _named_deltas(net: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.delta": delta for name, delta in deltas_of(net).items()}


def new_adapter(kind: str, base: Model, **parts: Any) -> Adapter:
    """The description of an adapter that is to be trained.

    Args:
        kind: Kind of the adapter.
        base: The model that it belongs to.
        **parts: Further attributes.
    """
    return Adapter(kind, kind, {}, base=base.name, base_identity=base.identity, **parts)


def added(
    net: Precond, part: nn.Module, kind: str, base: Model, fields: Mapping[str, Any]
) -> Tuned:
    """A part of the network as all that is trained.

    Args:
        net: The denoiser.
        part: The part.
        kind: Kind of the adapter.
        base: The model that the adapter belongs to.
        fields: Fields of the network's configuration that make room for the part.
    """
    net.requires_grad_(False)
    part.requires_grad_(True)
    return Added(net, new_adapter(kind, base, backbone=dict(fields)))
