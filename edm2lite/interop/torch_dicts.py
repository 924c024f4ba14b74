"""Dictionaries in files of ``torch.save``, as data: tensors, numbers and texts by their keys."""

from __future__ import annotations

from pathlib import Path

from edm2lite.interop.inert_pickle import Record
from edm2lite.interop.plain_records import as_mapping
from edm2lite.interop.torch_zip import TorchFile, read_torch

PARAMETERS = "torch.nn.modules.container.ParameterDict"
_ALSO = {PARAMETERS, "builtins.set"}  # a module has sets beside its parameters


def read_dict(path: Path) -> tuple[TorchFile, dict[str | int, object]]:
    """The file and the entries of the dictionary in it; nothing in it is executed.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged, or holds anything but tensors and plain values.

    Example:
        >>> import tempfile, torch
        >>> path = Path(tempfile.mkdtemp()) / "a.pt"
        >>> torch.save({"name": "cat", "step": 3}, path)
        >>> read_dict(path)[1]
        {'name': 'cat', 'step': 3}
    """
    file = read_torch(path, also=_ALSO)
    try:
        return file, dict(as_mapping(file.root, "its content"))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error


def as_parameters(value: object, what: str) -> dict[str | int, object]:
    """The entries of a dictionary, or of torch's module that holds parameters by name.

    Args:
        value: A value within the file.
        what: Name of the value in messages.

    Raises:
        ValueError: If it is neither. The message continues a sentence that begins with the name of
            the file.

    Example:
        >>> as_parameters({"*": 1}, "string_to_param")
        {'*': 1}
    """
    if isinstance(value, Record) and value.name == PARAMETERS:
        state = as_mapping(value.state, what)
        value = state.get("_parameters", state)
    return dict(as_mapping(value, what))
