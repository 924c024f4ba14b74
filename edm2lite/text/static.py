"""Static token embeddings: a table with a row per token, as the package wordllama has one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xxhash
from torch import Tensor

from edm2lite.extras import require
from edm2lite.messages import one_line
from edm2lite.tensorfile import as_bytes, load_tensors
from edm2lite.text.encoder import TextEncoder
from edm2lite.text.model import TextModel, TextStates, plain
from edm2lite.text.place import absolute, present
from edm2lite.text.words import WordInput, in_order

PACKAGE = "wordllama"
"""Package whose table of 32,000 tokens and 256 numbers each is the default."""

_LOADING = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class StaticTextEncoder(TextEncoder):
    """A row of a table for each token; the pooled vector is the mean of the rows.

    Attributes:
        kind: ``static``.
        source: ``wordllama``, the table in the package of that name; or a safetensors file with one
            table [tokens, D] and ``tokenizer.json`` beside it, or a folder of these two.

    Example:
        >>> encoder = StaticTextEncoder(num_tokens=4).measured(["a red heart", "a blue car"])
        >>> encoder.encode(["a red heart", ""])
        Conditioning(pooled: [2, 256], tokens: [2, 4, 256])
    """

    kind: Literal["static"] = "static"
    source: str = PACKAGE

    def load(self, device: str = "cpu", download: bool = False) -> TextModel:
        """See :meth:`edm2lite.text.encoder.TextEncoder.load`; the table is used on the CPU."""
        with _LOADING:
            return _load(present(self.source), self.num_tokens)

    def located(self) -> StaticTextEncoder:
        """See :meth:`edm2lite.text.encoder.TextEncoder.located`."""
        if self.source == PACKAGE:
            return self
        return dataclasses.replace(self, source=absolute(self.source))


@lru_cache(maxsize=2)
def _load(source: str, num_tokens: int) -> TextModel:
    require("tokenizers")
    from tokenizers import Tokenizer

    weights, vocabulary = _in_package() if source == PACKAGE else _in_folder(Path(source))
    content = vocabulary.read_bytes()
    try:
        tokenizer: Any = Tokenizer.from_buffer(content)
    except ValueError as error:
        raise ValueError(
            f"{vocabulary} must be the tokenizer.json of a table of embeddings, but"
            f" {one_line(error, 200)}; give the folder of another one"
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    table = _table(weights, tokenizer.get_vocab_size())
    digest = xxhash.xxh3_64_hexdigest(bytes(as_bytes(table)) + content)
    rows = table.float().numpy()

    def ids_of(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(plain(text), add_special_tokens=False).ids
        return ids

    def compute(text: str) -> TextStates:
        ids = ids_of(text)[:num_tokens]
        tokens = rows[ids] if ids else rows[:0]
        pooled = tokens.mean(axis=0, dtype=np.float64) if ids else np.zeros(rows.shape[1])
        return TextStates(torch.from_numpy(tokens), torch.from_numpy(pooled).float())

    def input_rows(text: str) -> Tensor:
        return torch.from_numpy(rows[ids_of(text)])

    def states(text: str, words: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        tokens = torch.cat([*in_order(text, words, input_rows)])[:num_tokens]
        return tokens, tokens.double().mean(0).float()

    return TextModel(source, digest, compute, num_tokens, WordInput(input_rows, states))


def _in_package() -> tuple[Path, Path]:
    """Files of the package, which is not imported: that would need more than this does."""
    try:
        distribution = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"the table of static embeddings is in {PACKAGE}; pip install 'edm2lite[text]'"
        ) from error
    names = f"{PACKAGE}/weights/l2_supercat_256", f"{PACKAGE}/tokenizers/l2_supercat_tokenizer"
    weights = Path(str(distribution.locate_file(f"{names[0]}.safetensors")))
    return weights, Path(str(distribution.locate_file(f"{names[1]}_config.json")))


def _in_folder(path: Path) -> tuple[Path, Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if len(files) != 1 or not files[0].is_file():
        raise ValueError(
            f"{path} must be a safetensors file with a table of embeddings, or a folder with one,"
            f" found {len(files) if path.is_dir() else 'no file'}; give the file, or {PACKAGE} for"
            " the table in the package of that name"
        )
    vocabulary = files[0].with_name("tokenizer.json")
    if not vocabulary.is_file():
        raise ValueError(
            f"{files[0]} must have a tokenizer.json beside it, found none; copy the tokenizer of"
            " the table there"
        )
    return files[0], vocabulary


def _table(path: Path, num_tokens: int) -> torch.Tensor:
    tensors, _ = load_tensors(path)
    shapes = [list(value.shape) for value in tensors.values()]
    (table,) = tensors.values() if len(tensors) == 1 else (torch.empty(0),)
    if table.ndim != 2 or not table.is_floating_point() or len(table) < num_tokens:
        raise ValueError(
            f"{path} must hold one table of embeddings with a row for each of {num_tokens} tokens,"
            f" found tensors {shapes[:3]}{' ...' if len(shapes) > 3 else ''}; an encoder of"
            " transformers is named transformers:FOLDER"
        )
    return table
