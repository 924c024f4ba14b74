"""Weights files of extractors, so that torch-fidelity cannot execute what is in them.

torch-fidelity opens the files that it is given with ``torch.load(weights_only=False)`` or, those of
CLIP, with ``torch.jit.load``. Both run code that a file brings along. What a file is follows from
its bytes, not from its name: its tensors are read here, by readers that execute nothing, and only
they are handed on.
"""

from __future__ import annotations

import contextlib
import pickle
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2lite.tensorfile import load_tensors


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


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch file of tensors, told apart by their bytes.

    Args:
        path: The file.

    Raises:
        ValueError: If it is neither; nothing in it has been executed.

    Example:
        >>> path = Path(tempfile.mkdtemp()) / "weights.bin"
        >>> torch.save({"w": torch.ones(2)}, path)
        >>> read_tensors(path)
        {'w': tensor([1., 1.])}
    """
    if _is_safetensors(path):
        return load_tensors(path)[0]
    try:
        # An open file: of a path, torch would look at the name. Its warnings are of odd files.
        with warnings.catch_warnings(), open(path, "rb") as file:
            warnings.simplefilter("ignore")
            found: Any = torch.load(file, weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise _refused(path, f"torch's weights-only loading says: {reason}") from error
    except (KeyError, IndexError, AttributeError, TypeError, AssertionError) as error:
        raise _refused(path, f"it is damaged ({type(error).__name__})") from error
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise _refused(path, "it holds something else")
    return found


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as one: the length of the header, and JSON."""
    with open(path, "rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return len(start) == 9 and start[8:] == b"{" and 8 + length <= path.stat().st_size


def _refused(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path} must be a safetensors file, or a torch file of tensors and nothing else, {why};"
        " nothing in it was executed"
    )
