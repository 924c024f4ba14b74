"""Weights files of extractors, so that torch-fidelity cannot execute what is in them.

torch-fidelity opens the files that it is given with ``torch.load(weights_only=False)`` or, those of
CLIP, with ``torch.jit.load``. Both run code that a file brings along. What a file is follows from
its bytes, not from its name: its tensors are read here, by readers that execute nothing, and only
they are handed on.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from edm2lite.interop.torch_files import read_tensors


@contextlib.contextmanager
def tensors_alone(name: str, weights: Path | None) -> Iterator[Path | None]:
    """A file that holds the tensors of a weights file and nothing else, while the block lasts.

    Args:
        name: Name of the extractor in torch-fidelity.
        weights: The file; None for weights that torch-fidelity downloads.

    Raises:
        ValueError: If the file holds anything but tensors, or the extractor wants a program.

    Example:
        >>> with tensors_alone("inception-v3-compat", None) as path:
        ...     print(path)
        None
    """
    if weights is None:
        yield None
        return
    if name.startswith("clip-"):
        raise ValueError(
            f"weights of {name} are a TorchScript program, which would run when {weights} is"
            " opened: it is not; leave the weights out, and torch-fidelity downloads OpenAI's"
        )
    tensors = read_tensors(weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save(tensors, path)
        yield path
