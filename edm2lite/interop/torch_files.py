"""Files of tensors of other tools, safetensors or torch's own: only tensors come out of them.

What a file is follows from its bytes, not from its name. torch's own files are read by
``torch.load(weights_only=True)``, which builds tensors and plain values and executes nothing else.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edm2lite.messages import one_line
from edm2lite.tensorfile import load_tensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch file of tensors.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is neither; nothing in it has been executed.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "weights.bin"
        >>> torch.save({"w": torch.ones(2)}, path)
        >>> read_tensors(path)
        {'w': tensor([1., 1.])}
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if is_safetensors(path):
        return load_tensors(path)[0]
    with open(path, "rb") as file:  # of a path, torch would look at the name
        found = load_weights_only(file, path)
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and type(value) in (Tensor, torch.nn.Parameter)
        for name, value in found.items()
    ):
        raise _refused(path, "it holds something else")
    return {name: value.detach() for name, value in found.items()}


def load_weights_only(file: Any, path: Path, *, in_place: bool = False) -> Any:
    """What ``torch.load(weights_only=True)`` makes of a file: tensors and plain values.

    Args:
        file: The file, open for reading; with ``in_place`` its path.
        path: Name of the file for messages.
        in_place: Whether tensors stay in the file and are read as they are used.

    Raises:
        ValueError: If it holds anything else; nothing in it has been executed.
    """
    try:
        with warnings.catch_warnings():  # of odd files
            warnings.simplefilter("ignore")
            return torch.load(file, weights_only=True, map_location="cpu", mmap=in_place or None)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = one_line(str(error).strip().partition("\n")[0] or type(error).__name__, 200)
        raise _refused(path, f"torch's weights-only loading says: {reason}") from error
    except Exception as error:  # of a damaged pickle, torch raises whatever it comes to
        raise _refused(path, f"it is damaged ({type(error).__name__})") from error


def is_safetensors(path: Path) -> bool:
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
