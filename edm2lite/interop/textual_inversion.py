"""Files of textual inversion: vectors that stand for a new word, of diffusers and A1111's web UI.

The vectors belong to the input of a text encoder, :mod:`edm2lite.text.words`: with the encoder that
they were made for, they are an adapter like any other. Files are read as data.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from edm2lite.interop.inert_pickle import shown
from edm2lite.interop.torch_dicts import as_parameters, read_dict
from edm2lite.models.adapters import VECTORS, Adapter
from edm2lite.models.model import Model
from edm2lite.tensorfile import all_finite, load_tensors, save_tensors

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

    def adapter(self, base: Model) -> Adapter:
        """The word as an adapter of a model, whose text encoder takes vectors of that length.

        Args:
            base: The model.

        Raises:
            ValueError: If there are several words, or they fit no text encoder of the model.
        """
        (word, vectors), *others = self.vectors.items()
        if others:
            raise ValueError(
                f"{self.path} must hold one word for one text encoder, it has {word} and"
                f" {next(iter(self.vectors.keys() - {word}))}; keep one of them in the file"
            )
        if base.text_encoder is None:
            raise ValueError(
                f"{self.path} must be used with a model that is told text, {base.name} is told"
                " none; use another model"
            )
        encoder = base.text_encoder.opened()
        width = encoder.input_rows("a").shape[1]
        if vectors.shape[1] != width:
            raise ValueError(
                f"{self.path} must have vectors of the length of the text encoder of {base.name},"
                f" {width}, got {vectors.shape[1]}; use the encoder they were made for"
            )
        return Adapter(
            str(self.path), "textual_inversion", {VECTORS: vectors.contiguous()},
            base=base.name, base_identity=base.identity, text={"word": word, "scale": 1.0},
            metadata={"tool": "textual inversion"},
        )  # fmt: skip


def write_learned_word(path: str | Path, adapter: Adapter) -> Path:
    """Write a word as ``learned_embeds.safetensors`` of diffusers: {word: [n, length]}.

    Args:
        path: The file.
        adapter: Adapter that teaches a word, and nothing else.

    Raises:
        ValueError: If it is of another kind.

    Example:
        >>> import tempfile, torch
        >>> told = {"word": "<cat>", "scale": 0.5}
        >>> adapter = Adapter("a", "textual_inversion", {VECTORS: torch.ones(1, 4)}, text=told)
        >>> path = write_learned_word(f"{tempfile.mkdtemp()}/cat.safetensors", adapter)
        >>> read_learned_tokens(path).vectors["<cat>"]
        tensor([[0.5000, 0.5000, 0.5000, 0.5000]])
    """
    if (word := adapter.word) is None:
        raise ValueError(f"{adapter.name} must teach a word, it is of kind {adapter.kind}")
    return save_tensors(Path(path), {word[0]: word[1].contiguous()}, {"format": "pt"})


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
