"""Which tensors of a model are averaged, under which names, and where they are at any moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

Source = nn.Module | Mapping[str, Tensor]

_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


class Tracked:
    """The tensors of a source that train, each once, by the first of its names.

    Of a module these are the floating-point parameters that require gradients, of a mapping all
    floating-point tensors.

    Args:
        source: A module, or a mapping of names to tensors.

    Raises:
        ValueError: There is nothing to average, or two names are one without their wrappers.
    """

    def __init__(self, source: Source):
        self._source = source
        tensors = named(source)
        self._known = set(tensors)
        first: dict[int, str] = {}  # one parameter may have several names: tied weights
        self.owner = {
            name: first.setdefault(id(t), name) for name, t in tensors.items() if _trains(source, t)
        }
        if not self.owner:
            raise ValueError(
                "source must hold at least one floating-point tensor that trains, found none among"
                f" {len(tensors)}; build the tracker before freezing the model"
            )
        self._shapes = {name: t.shape for name, t in tensors.items() if name in self.owner}

    def all(self) -> dict[str, Tensor]:
        """Every tensor of the source, in the order of its state dict."""
        return named(self._source)

    def live(self, source: Source | None = None) -> dict[str, Tensor]:
        """The tensors to average as they are now, in a fixed order.

        Raises:
            ValueError: They are not the ones that were there at the start.
        """
        source = self._source if source is None else source
        tensors = named(source)
        if isinstance(source, nn.Module):
            frozen = [name for name in self._known.intersection(tensors) if name not in self.owner]
            late = sorted(name for name in frozen if _trains(source, tensors[name]))
            if late:
                raise ValueError(
                    f"tensors must train from the start to be averaged, {late[:5]} were frozen"
                    " then; make a new tracker with start_nimg set to the image count so far"
                )
        check_names(self.owner, [n for n in tensors if n in self.owner or n not in self._known])
        for name, owner in self.owner.items():
            if tensors[name] is not tensors[owner]:
                raise ValueError(
                    f"{owner} and {name} must stay one tensor, as at the start; make a new tracker"
                )
            if tensors[name].shape != self._shapes[name]:
                raise ValueError(
                    f"{name} must keep its shape {tuple(self._shapes[name])}, got"
                    f" {tuple(tensors[name].shape)}"
                )
        return {owner: tensors[owner].detach() for owner in dict.fromkeys(self.owner.values())}


def clean_names(names: Iterable[str]) -> list[str]:
    """Tensor names without what torch.compile, FSDP, checkpointing and DDP put in, in order."""
    names = list(names)
    for wrapper in _WRAPPERS:
        names = [name.replace(wrapper, "") for name in names]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    return names


def named(source: Source) -> dict[str, Tensor]:
    """Name -> live tensor, as in the model's own state dict (without extra state).

    Raises:
        ValueError: Two names are the same once wrappers are removed.
    """
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
    """Raise ValueError, listing what differs, unless both hold the same names."""
    missing, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or unknown:
        raise ValueError(
            "tensors must be the ones that are averaged;"
            f" missing {missing[:5] or 'none'}, unknown {unknown[:5] or 'none'}"
        )


# A DTensor is known by its methods: torch.distributed need not be loaded, or exist, without one.


def is_sharded(tensor: Tensor) -> bool:
    """Whether this process holds a part of the tensor (DTensor; FSDP2, tensor parallelism)."""
    return hasattr(tensor, "to_local")


def local(tensor: Any) -> Tensor:
    """The part of a tensor that is in this process; the tensor itself if it is not sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def on_host(tensors: Mapping[str, Any], dtype: torch.dtype, *, keep: bool) -> dict[str, Tensor]:
    """Copies of whole tensors as they will be stored, none unless ``keep``.

    Sharded tensors are gathered one at a time, for which every rank must call this.
    """
    copies = {}
    for name, tensor in tensors.items():
        whole = tensor.detach().full_tensor() if is_sharded(tensor) else tensor.detach()
        if keep:
            stored = dtype if whole.is_floating_point() else whole.dtype
            copies[name] = whole.to("cpu", stored, copy=True)
    return copies


def as_part_of(part: Tensor, whole: Any) -> Tensor:
    """``part`` as the local part of a tensor that is sharded like ``whole``; no communication."""
    if not is_sharded(whole):
        return part
    from torch.distributed.tensor import DTensor

    stride = torch.empty(whole.shape, device="meta").stride()
    return DTensor.from_local(
        part.to(whole.to_local().device),
        whole.device_mesh,
        whole.placements,
        run_check=False,
        shape=whole.shape,
        stride=stride,
    )


def over_ranks(value: int, tensors: Iterable[Any]) -> list[int]:
    """``value`` as each rank has it that shares these tensors; every one must call this."""
    sharded = [t for t in tensors if is_sharded(t)]
    if not sharded:
        return [value]
    from torch.distributed.tensor import DTensor, Shard

    mesh, mine = sharded[0].device_mesh, torch.tensor([value], device=local(sharded[0]).device)
    rows = DTensor.from_local(mine, mesh, [Shard(0)] * mesh.ndim, run_check=False)
    return rows.full_tensor().tolist()


def writes_files(tensors: Iterable[Tensor]) -> bool:
    """Whether this process is the one to write: rank 0 of a sharded model, else every one."""
    meshes = [t.device_mesh for t in tensors if is_sharded(t)]  # type: ignore[attr-defined]
    return not meshes or meshes[0].get_rank() == 0


def _trains(source: Source, tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return False
    if isinstance(source, nn.Module):
        return isinstance(tensor, nn.Parameter) and tensor.requires_grad
    return True
