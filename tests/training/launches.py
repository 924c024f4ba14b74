"""How many kernels a CUDA device would be asked for, counted without one.

Operations are counted as torch dispatches them on fake CUDA tensors, by these rules:

- Views, allocations and questions of shape are free. Any other operation is one kernel.
- Operations on lists of tensors (``_foreach_*``, ``_fused_*``) run as torch's multi_tensor_apply
  runs them: chunks of 65536 elements, at most 320 chunks and 110, 64, 48 or 36 tensors (for one to
  four lists) in a kernel. Norms add one kernel that clears memory and one that adds up chunks.
  Lists whose tensors differ in dtype, strides or (scalar tensors) device go one tensor at a time.
- A concatenation takes 128 tensors in a kernel, 64 if they are not contiguous.
- Reading a value (``_local_scalar_dense``) or copying to the host waits for the device.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

CHUNK, CHUNKS = 65536, 320
TENSORS = {1: 110, 2: 64, 3: 48, 4: 36, 5: 30}
FREE = ("empty", "new_empty", "empty_strided", "new_empty_strided", "empty_like", "detach", "lift")


class Launches(TorchDispatchMode):
    """Counts kernels and waits of what runs within the block.

    Attributes:
        kernels: Name of each operation -> number of kernels.
        waits: Names of the operations that wait for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, name = func._schema.name.split("::")
        if space != "aten":  # questions and records, not computation
            return func(*args, **(kwargs or {}))
        if name == "_local_scalar_dense":
            self.waits.append(name)
            return True  # of a verdict: it was good
        is_fused = name.startswith("_fused_")  # in place, and not all of them know fake tensors
        result = None if is_fused else func(*args, **(kwargs or {}))
        lists = [a for a in args if isinstance(a, list | tuple) and len(a) and _are_tensors(a)]
        if isinstance(result, Tensor) and _crosses(args, result):
            self.waits += [name] * (result.device.type == "cpu")
        if not (func.is_view or name in FREE):
            self.kernels[name] += _kernels(name, lists)
        return result

    @property
    def total(self) -> int:
        """Number of kernels."""
        return self.kernels.total()


def _are_tensors(items: Sequence[Any]) -> bool:
    return all(isinstance(item, Tensor) for item in items)


def _crosses(args: Sequence[Any], result: Tensor) -> bool:
    devices = {a.device.type for a in args if isinstance(a, Tensor)} | {result.device.type}
    return len(devices) > 1


def _kernels(name: str, lists: list[Sequence[Tensor]]) -> int:
    if name in ("cat", "stack"):
        batch = 128 if all(t.is_contiguous() for t in lists[0]) else 64
        return -(-len(lists[0]) // batch)
    if not name.startswith(("_foreach_", "_fused_")):
        return 1
    is_adam = name.startswith("_fused_adam")
    depth = 4 if is_adam else len(lists)
    if not is_adam and not _alike(lists):
        return len(lists[0])
    return _chunked([t.numel() for t in lists[0]], depth) + 2 * (name == "_foreach_norm")


def _alike(lists: list[Sequence[Tensor]]) -> bool:
    first = lists[0]
    return all(
        (t.dtype, t.device, t.shape) == (a.dtype, a.device, a.shape)
        and all(n == 1 or i == j for n, i, j in zip(t.shape, t.stride(), a.stride(), strict=True))
        for other in lists[1:]
        for t, a in zip(other, first, strict=True)
    )


def _chunked(sizes: Sequence[int], depth: int) -> int:
    """Kernels of multi_tensor_apply over tensors of these sizes, in ``depth`` lists."""
    kernels = tensors = chunks = 0
    for size in filter(None, sizes):
        tensors += 1
        count = -(-size // CHUNK)
        for i in range(count):
            chunks += 1
            is_last = i + 1 == count
            if chunks == CHUNKS or (is_last and tensors == TENSORS[depth]):
                kernels, chunks = kernels + 1, 0
                tensors = 0 if is_last else 1
    return kernels + (chunks > 0)
