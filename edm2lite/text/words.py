"""Words that a text encoder has learned: vectors at its input, in place of the tokens of a text."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MAX_VECTORS = 1024
"""Largest number of vectors of all learned words of an encoder."""


class WordInput(NamedTuple):
    """The input of a text encoder, where learned words come in.

    Attributes:
        rows: Function from a text to the vectors [t, D] of its tokens, before they are encoded.
        states: Function from a text and vectors of words, [n, D] each, to tokens and pooled vector;
            it keeps the derivative with respect to the vectors.
    """

    rows: Callable[[str], Tensor]
    states: Callable[[str, Mapping[str, Tensor]], tuple[Tensor, Tensor]]


def check_word(word: str) -> None:
    """Raise ValueError unless a word can be told apart within a text.

    Example:
        >>> check_word("<cat>")
        >>> check_word("my cat")
        Traceback (most recent call last):
        ValueError: a learned word must be 2 to 64 characters without spaces, got 'my cat'
    """
    if not 2 <= len(word) <= 64 or not word.isprintable() or any(c.isspace() for c in word):
        raise ValueError(
            f"a learned word must be 2 to 64 characters without spaces, got {word[:70]!r}"
        )


def pieces(text: str, words: Iterable[str]) -> list[str]:
    """The parts of a text before, between and behind learned words, and these words.

    Of two words that begin at one place, the longer one is meant.

    Example:
        >>> pieces("a <cat> and a <cat>s", ["<cat>"])
        ['a ', '<cat>', ' and a ', '<cat>', 's']
    """
    known = sorted(words, key=len, reverse=True)
    return [part for part in re.split("(" + "|".join(map(re.escape, known)) + ")", text) if part]


def in_order(
    text: str, words: Mapping[str, Tensor], rows: Callable[[str], Tensor]
) -> Iterator[Tensor]:
    """The vectors of a text, piece by piece: those of learned words, and rows of other tokens."""
    for piece in pieces(text, words):
        yield words[piece] if piece in words else rows(piece)


def grouped(names: Sequence[str], vectors: Sequence[Sequence[float]]) -> dict[str, Tensor]:
    """Word -> its vectors [n, D] float32, from the word that each vector belongs to.

    Args:
        names: Word of each vector.
        vectors: Vectors of one length.

    Raises:
        ValueError: If there are more or fewer words than vectors, too many, or of several lengths.

    Example:
        >>> grouped(["<a>", "<a>", "<b>"], [[1.0], [2.0], [3.0]])["<a>"].tolist()
        [[1.0], [2.0]]
    """
    if len(names) != len(vectors) or len({len(v) for v in vectors}) > 1:
        raise ValueError(
            f"text.word_vectors must be a vector of one length for each of text.words, got"
            f" {len(vectors)} for {len(names)}"
        )
    if len(names) > MAX_VECTORS:
        raise ValueError(f"text.words must be at most {MAX_VECTORS}, got {len(names)}")
    for name in names:
        check_word(name)
    found: dict[str, list[Tensor]] = {}
    for name, vector in zip(names, vectors, strict=True):
        found.setdefault(name, []).append(torch.tensor(vector))
    return {name: torch.stack(rows) for name, rows in found.items()}
