"""Files of textual inversion: vectors that stand for a new word, of diffusers and A1111's web UI.

The vectors belong to the input of a text encoder. They are read as data; a network here is told
what an encoder makes of words, and its encoders take no new ones.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.torch_dicts import as_parameters, read_dict
from edm2lite.tensorfile import all_finite, load_tensors

_MAX_VECTORS, _MAX_LENGTH = 1024, 65536
_UNNAMED = ("emb_params", "clip_l", "clip_g")  # keys that name a place, and no token


@dataclass(frozen=True)
class LearnedTokens:
    """Vectors of new words.

    Attributes:
        path: The file.
        vectors: Token, or encoder of a file for several -> [n, length] float32.
        notes: What else the file says: name, step, checkpoint.
    """

    path: Path
    vectors: Mapping[str, Tensor]
    notes: Mapping[str, str]

    def refusal(self, model: str) -> str:
        """Why the vectors cannot be used with a model, in one line.

        Args:
            model: Name of the model.
        """
        first = next(iter(self.vectors.values()))
        return (
            f"{self.path} cannot be used with {model}: its vectors of length {first.shape[1]} stand"
            " for a new word at the input of a text encoder, and encoders here take the words that"
            " they know; fine-tune the model itself (tune.kind: embedding or lora)"
        )


def read_learned_tokens(path: str | Path) -> LearnedTokens:
    """The vectors in a file of textual inversion; nothing in it is executed.

    Known are ``learned_embeds`` of diffusers, {token: [n, length]} or, in older files, {token:
    [length]}; the ``.pt`` of A1111's web UI with ``string_to_param``; and safetensors with
    ``emb_params``.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is damaged or holds something else.

    Example:
        >>> import tempfile, torch
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp()) / "learned_embeds.safetensors"
        >>> save_file({"<cat>": torch.ones(768)}, path)
        >>> read_learned_tokens(path).vectors["<cat>"].shape
        torch.Size([1, 768])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        tensors, notes = _of_torch(path) if zipfile.is_zipfile(path) else load_tensors(path)
        vectors = {_token(name, path): _checked(name, value) for name, value in tensors.items()}
        if not vectors or len(vectors) < len(tensors):
            raise ValueError("must hold vectors of tokens, once each")
    except ValueError as error:
        text = str(error)
        raise ValueError(text if str(path) in text else f"{path} {text}") from error
    return LearnedTokens(path, vectors, notes)


def _of_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    file, content = read_dict(path)
    if "string_to_param" not in content:
        return {str(n): file.tensor(v, shown(n)) for n, v in content.items()}, {}
    params = as_parameters(content["string_to_param"], "string_to_param")
    known = ("name", "step", "sd_checkpoint", "sd_checkpoint_name")
    notes = {k: shown(content[k]) for k in known if content.get(k) is not None}
    tensors = {str(n): file.tensor(v, shown(n)) for n, v in params.items()}
    if list(tensors) == ["*"]:  # the name of the file is the word
        tensors = {path.stem: tensors["*"]}
    return tensors, notes


def _token(name: str, path: Path) -> str:
    return path.stem if name == _UNNAMED[0] else name


def _checked(name: str, value: Tensor) -> Tensor:
    vectors = value.float() if value.ndim == 2 else value.float()[None]
    if (
        not value.is_floating_point()
        or vectors.ndim != 2
        or not 1 <= len(vectors) <= _MAX_VECTORS
        or not 1 <= vectors.shape[1] <= _MAX_LENGTH
    ):
        raise ValueError(
            f"must hold vectors [n, length] or [length] of tokens, {shown(name)} is"
            f" {list(value.shape)}"
        )
    if not all_finite(vectors):
        raise ValueError(f"must hold finite numbers, {shown(name)} has NaN or infinity")
    return vectors
