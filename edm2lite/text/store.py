"""Encoded captions on disk, found by the digest of their text: encoded once, read while training.

The folder holds ``captions.json`` (the text encoder, and the files) and the shards
``captions-00000.safetensors``, ... with texts in the order of their digests. A shard holds

- ``digests`` [n] int64: :func:`edm2lite.text.model.text_digest` of each text;
- ``ends`` [n] int64: number of tokens up to and including those of each text;
- ``tokens`` [ends[-1], D] and ``pooled`` [n, P] float32: states, not standardized.

``captions.json`` is written last: a folder without it is incomplete.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from edm2lite.messages import one_line
from edm2lite.strict_json import parse_object
from edm2lite.tensorfile import Header, read_header
from edm2lite.text.encoder import TextEncoder
from edm2lite.text.model import TextStates, shortened, text_digest
from edm2lite.text.named import text_encoder_from_dict
from edm2lite.text.statistics import distinct

FORMAT = "edm2lite.captions/1"
INDEX = "captions.json"

_DTYPES: dict[str, tuple[Any, str, int]] = {
    "digests": (np.int64, "I64", 1),
    "ends": (np.int64, "I64", 1),
    "tokens": (np.float32, "F32", 2),
    "pooled": (np.float32, "F32", 2),
}


class CaptionStore:
    """Encoded captions; headers are checked at once, states are read when they are used.

    Attributes:
        path: Folder of the store.
        encoder: Text encoder that made the states, with statistics.

    Args:
        path: Folder that :func:`encode_captions` has written.

    Raises:
        FileNotFoundError: If there is no such folder, or a shard is missing.
        ValueError: If it is not complete, or a file is damaged.

    Example:
        >>> import tempfile
        >>> from edm2lite.text import StaticTextEncoder, encode_captions
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = encode_captions(["red heart", "blue car"], folder, StaticTextEncoder())
        ...     len(CaptionStore(folder)), CaptionStore(folder).missing(["red heart", "cat"])
        (2, ['cat'])
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.encoder, entries = _read_index(self.path)
        self._shards = [
            StoreShard(self.path / shard_name(i), entry) for i, entry in enumerate(entries)
        ]
        self._digests = np.concatenate([shard.digests for shard in self._shards])
        self._starts = np.cumsum([0, *(len(shard.digests) for shard in self._shards)])

    def __len__(self) -> int:
        return len(self._digests)

    def states(self, text: str) -> TextStates:
        """The states of one text.

        Raises:
            ValueError: If the text is not in the store.
        """
        digest = text_digest(text)
        row = int(np.searchsorted(self._digests, digest))
        if row == len(self._digests) or self._digests[row] != digest:
            raise ValueError(
                f"{self.path} must hold every caption, it has none {shortened(text)}; encode the"
                " captions of this data set into another folder"
            )
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self._shards[shard].row(row - int(self._starts[shard]))

    def missing(self, texts: Iterable[str]) -> list[str]:
        """The distinct texts that the store does not hold; empty ones need not be there."""
        wanted = distinct(texts)
        digests = np.array([text_digest(text) for text in wanted], np.int64)
        there = np.isin(digests, self._digests)
        return [text for text, is_there in zip(wanted, there, strict=True) if not is_there]


class StoreShard:
    """One file, mapped into memory; ValueError if it is not what ``digest`` says."""

    def __init__(self, path: Path, digest: str | None = None):
        header = read_header(path)
        if digest not in (None, header.digest) or not {*_DTYPES} <= {*header.tensors}:
            raise ValueError(
                f"{path} belongs to another store than {INDEX}; encode the captions again"
            )
        self.digests, self._ends, self._tokens, self._pooled = (
            _mapped(header, name) for name in _DTYPES
        )

    def row(self, index: int) -> TextStates:
        """A copy of the states of one text."""
        begin = int(self._ends[index - 1]) if index else 0
        tokens = np.array(self._tokens[begin : int(self._ends[index])])
        return TextStates(torch.from_numpy(tokens), torch.from_numpy(np.array(self._pooled[index])))

    def rows(self) -> Iterator[TextStates]:
        """All of them in order."""
        return map(self.row, range(len(self.digests)))


def _mapped(header: Header, name: str) -> NDArray[Any]:
    spec, (dtype, kind, ndim) = header.tensors[name], _DTYPES[name]
    if spec.type != kind or len(spec.shape) != ndim:
        raise ValueError(
            f"{header.path} must hold {name} with {ndim} dimensions of {kind}, found"
            f" {list(spec.shape)} of {spec.type}; encode the captions again"
        )
    if not spec.numel:
        return np.zeros(spec.shape, dtype)
    return np.memmap(header.path, dtype, "r", spec.offset, spec.shape)


def shard_name(number: int) -> str:
    """File name of a shard: ``"captions-00003.safetensors"``."""
    return f"captions-{number:05d}.safetensors"


def _read_index(path: Path) -> tuple[TextEncoder, list[str]]:
    """The text encoder of a store, and the digests of its shards."""
    file = path / INDEX
    if not file.is_file():
        begun = any(path.glob("captions-*.safetensors"))
        raise FileNotFoundError(
            f"{path} must hold encoded captions, it has no {INDEX}"
            + (" yet; run the same command again to complete it" if begun else
               "; make it by edm2lite dataset encode-captions")
        )  # fmt: skip
    try:
        content = parse_object(file.read_bytes())
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        encoder = text_encoder_from_dict(content["encoder"])
        shards = content["shards"]
        if not encoder.is_complete or not shards or any(type(d) is not str for d in shards):
            raise ValueError("it lists no shards, or its encoder has no statistics")
        return encoder, shards
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file} must be the index of a store of captions that this version knows"
            f" ({one_line(error, 300)}); encode the captions again"
        ) from error
