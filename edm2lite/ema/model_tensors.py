"""The tensors of a model: under which names, and which of them are averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from edm2lite.ema.shards import local_shard

Source = nn.Module | Mapping[str, Tensor]
"""Where the tensors of a model are found: a module, or a mapping of names to tensors."""

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class TrackedTensors:
    """The tensors of a source that are trained, each once, under the first of its names.

    In a module these are the floating-point parameters that require gradients, in a mapping all
    floating-point tensors.

    Attributes:
        owner: Name of each trained tensor -> the first name of that tensor. They differ where one
            parameter has several names (tied weights).
        shapes: Name of each trained tensor -> its shape.

    Args:
        source: A module, or a mapping of names to tensors.

    Raises:
        ValueError: If there is nothing to average, or two names are equal without their wrappers.

    Example:
        >>> list(TrackedTensors(nn.BatchNorm1d(3)).live())  # buffers are not trained
        ['weight', 'bias']
    """

    def __init__(self, source: Source):
        self._source = source
        tensors = named_tensors(source)
        self._known = set(tensors)
        first: dict[int, str] = {}
        self.owner = {
            name: first.setdefault(id(t), name) for name, t in tensors.items() if _trains(source, t)
        }
        if not self.owner:
            raise ValueError(
                "source must hold at least one floating-point tensor that trains, found none among"
                f" {len(tensors)}; build the tracker before freezing the model"
            )
        self.shapes = {name: t.shape for name, t in tensors.items() if name in self.owner}

    def all(self) -> dict[str, Tensor]:
        """Every tensor of the source, in the order of its state dict."""
        return named_tensors(self._source)

    def live(self, source: Source | None = None) -> dict[str, Tensor]:
        """The trained tensors as they are now, in a fixed order.

        Args:
            source: Where the tensors are now. [default: the source given at construction]

        Raises:
            ValueError: If names, shapes or ties differ from those at construction, or a tensor
                that was frozen is trained now.
        """
        source = self._source if source is None else source
        tensors = named_tensors(source)
        if isinstance(source, nn.Module):
            self._refuse_unfrozen(source, tensors)
        check_names(self.owner, [n for n in tensors if n in self.owner or n not in self._known])
        for name, owner in self.owner.items():
            if tensors[name] is not tensors[owner]:
                raise ValueError(
                    f"{owner} and {name} must stay one tensor, as at the start; make a new tracker"
                )
            if tensors[name].shape != self.shapes[name]:
                raise ValueError(
                    f"{name} must keep its shape {tuple(self.shapes[name])}, got"
                    f" {tuple(tensors[name].shape)}"
                )
        return {owner: tensors[owner].detach() for owner in dict.fromkeys(self.owner.values())}

    def _refuse_unfrozen(self, source: Source, tensors: Mapping[str, Tensor]) -> None:
        frozen = [name for name in self._known.intersection(tensors) if name not in self.owner]
        unfrozen = sorted(name for name in frozen if _trains(source, tensors[name]))
        if unfrozen:
            raise ValueError(
                f"tensors must train from the start to be averaged, {unfrozen[:5]} were frozen"
                " then; make a new tracker with start_nimg set to the image count so far"
            )


def clean_names(names: Iterable[str]) -> list[str]:
    """Tensor names without the prefixes of torch.compile, FSDP, checkpointing and DDP, in order.

    Example:
        >>> clean_names(["module._orig_mod.weight", "module._orig_mod.bias"])
        ['weight', 'bias']
    """
    names = list(names)
    for wrapper in _WRAPPERS:
        names = [name.replace(wrapper, "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def named_tensors(source: Source) -> dict[str, Tensor]:
    """Name -> live tensor, as in the state dict of the model itself, without extra state.

    Args:
        source: A module, or a mapping of names to tensors.

    Raises:
        ValueError: If it is neither, or two names are equal once the prefixes of wrappers are
            removed.

    Example:
        >>> list(named_tensors(nn.ModuleDict({"module": nn.Linear(2, 1)})))
        ['weight', 'bias']
    """
    if not isinstance(source, nn.Module | Mapping):
        raise ValueError(
            f"source must be a module, or a mapping of names to tensors, got a"
            f" {type(source).__name__}; give the model itself, or dict(model.named_parameters())"
        )
    found = source.state_dict(keep_vars=True) if isinstance(source, nn.Module) else source
    tensors = {name: t for name, t in found.items() if isinstance(t, Tensor)}
    names = clean_names(tensors)
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            "names must be distinct without wrapper prefixes such as _orig_mod., these are not:"
            f" {twice[:5]}"
        )
    return dict(zip(names, tensors.values(), strict=True))


def check_names(expected: Iterable[str], found: Iterable[str]) -> None:
    """Compare two sets of tensor names.

    Raises:
        ValueError: If they differ; the message lists the missing and the unknown names.

    Example:
        >>> check_names(["weight", "bias"], ["weight"])
        Traceback (most recent call last):
        ValueError: tensors must be the ones that are averaged; missing ['bias'], unknown none
    """
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise ValueError(
            "tensors must be the ones that are averaged;"
            f" missing {missing[:5] or 'none'}, unknown {unknown[:5] or 'none'}"
        )


def saved_averages(
    expected: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], unit: str = "images"
) -> list[tuple[Tensor, Tensor]]:
    """Pairs of a live average and the saved one that belongs there.

    Args:
        expected: Length -> name -> live average.
        state: ``averages`` likewise, and ``clock``, from a checkpoint.
        unit: What the clock counts.

    Raises:
        ValueError: If lengths, names or shapes differ, a value is not finite, or the clock is
            before its start or counts something else.

    Example:
        >>> import torch
        >>> live, saved = torch.zeros(2), torch.ones(2)
        >>> state = {"averages": {"0.1": {"w": saved}}, "clock": {"nimg": 64, "start_nimg": 0}}
        >>> saved_averages({"0.1": {"w": live}}, state)
        [(tensor([0., 0.]), tensor([1., 1.]))]
    """
    saved, clock = state["averages"], state["clock"]
    if not clock["nimg"] >= clock["start_nimg"] >= 0:
        raise ValueError(f"a saved clock must not be before its start, found {clock}")
    if (counted := clock.get("clock", "images")) != unit:
        raise ValueError(
            f"a run keeps one clock, this tracker counts {unit} and the saved one counted"
            f" {counted}; pass clock={counted!r}"
        )
    if sorted(saved) != sorted(expected):
        raise ValueError(
            f"saved averages must have lengths {list(expected)}, found {sorted(saved)}"
        )
    pairs = []
    for length, views in expected.items():
        check_names(views, saved[length])
        for name, view in views.items():
            value = local_shard(saved[length][name])
            if value.shape != view.shape:
                raise ValueError(
                    f"saved average of {name} must have the shape {tuple(view.shape)}, it has"
                    f" {tuple(value.shape)}; load a checkpoint of this model"
                )
            if not value.isfinite().all():
                raise ValueError(f"saved average of {name} must be finite; load another checkpoint")
            pairs.append((view, value))
    return pairs


def _trains(source: Source, tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    if isinstance(source, nn.Module):
        return isinstance(tensor, nn.Parameter) and tensor.requires_grad
    return True
