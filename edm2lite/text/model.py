"""A loaded text encoder: from one text to its states, with a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, lru_cache
from typing import NamedTuple

import torch
import xxhash
from torch import Tensor

from edm2lite.text.words import WordInput, grouped
from edm2lite.threads import map_in_threads

CACHE_BYTES = 2**28
"""Bytes of states that a loaded encoder keeps, at the longest text."""


class TextStates(NamedTuple):
    """What an encoder makes of one text, before it is standardized.

    Attributes:
        tokens: [t, D] float32, a row per token; t is 0 where nothing is left of a text.
        pooled: [P] float32, a vector of the whole text.

    Example:
        >>> tokens = torch.tensor([[1.0], [3.0]])
        >>> TextStates(tokens, tokens.mean(0)).pooled
        tensor([2.])
    """

    tokens: Tensor
    pooled: Tensor


class TextModel:
    """A text encoder in memory.

    Every text passes through it alone and on one thread: its states do not depend on what else is
    encoded, nor on the number of cores.

    Attributes:
        name: Name in messages.
        digest: Digest of weights and tokenizer.
        widths: Number of channels of the tokens, and of the pooled vector.

    Args:
        name: Name in messages.
        digest: Digest of weights and tokenizer.
        compute: Function from a text to its states.
        num_tokens: Largest number of tokens that ``compute`` returns.
        word_input: Layer at which learned words come in; None for an encoder that takes none.

    Example:
        >>> def letters(text):
        ...     codes = torch.tensor([[float(ord(letter))] for letter in text])
        ...     return TextStates(codes, codes.mean(0))
        >>> model = TextModel("letters", "0", letters, num_tokens=77)
        >>> model.states("ab").pooled
        tensor([97.5000])
    """

    def __init__(
        self,
        name: str,
        digest: str,
        compute: Callable[[str], TextStates],
        num_tokens: int,
        word_input: WordInput | None = None,
    ):
        self.name, self.digest, self._num_tokens = name, digest, num_tokens
        self._word_input = word_input
        states = compute("a")
        self.widths = states.tokens.shape[1], len(states.pooled)
        size = 4 * num_tokens * max(1, self.widths[0])
        self._cached = lru_cache(max(1, CACHE_BYTES // size))(self._computed)
        self._compute = compute

    def __deepcopy__(self, memo: object) -> TextModel:
        """Itself: it does not change, and copies of what uses it need no second one."""
        return self

    def states(self, text: str) -> TextStates:
        """The states of one text.

        Raises:
            ValueError: If they are not finite.
        """
        return self._cached(text)

    def each(self, texts: Iterable[str]) -> Iterator[TextStates]:
        """The states of several texts in order, not kept, computed on all threads."""
        return map_in_threads(self._checked, texts, torch.get_num_threads())

    def taught(self, words: tuple[str, ...], vectors: tuple[tuple[float, ...], ...]) -> TextModel:
        """This encoder with learned words, see :mod:`edm2lite.text.words`.

        Args:
            words: Word of each vector.
            vectors: Vectors at the input of the encoder.

        Raises:
            ValueError: If it takes no words, or vectors of another length.
        """
        return _taught(self, words, vectors)

    def input_rows(self, text: str) -> Tensor:
        """The vectors [t, D] of a text's tokens at the input of the encoder, before it computes.

        Raises:
            ValueError: If the encoder takes no learned words, or nothing is left of the text.
        """
        rows = self._words().rows(text)
        if not len(rows):
            raise ValueError(f"{self.name} must know the text {shortened(text)}, it has no tokens")
        return rows

    def states_with(self, text: str, words: Mapping[str, Tensor]) -> TextStates:
        """The states of a text with learned words, with derivatives and without a cache.

        Args:
            text: The text.
            words: Word -> its vectors [n, D] at the input of the encoder.

        Raises:
            ValueError: If the encoder takes no learned words, or vectors of another length.
        """
        width = self._input_width
        for word, vectors in words.items():
            if vectors.shape[1] != width:
                raise ValueError(
                    f"vectors of the word {word} must have the length of {self.name}'s input,"
                    f" {width}, got {vectors.shape[1]}; use the text encoder they were made for"
                )
        return TextStates(*self._words().states(text, words))

    @cached_property
    def _input_width(self) -> int:
        return self.input_rows("a").shape[1]

    def _words(self) -> WordInput:
        if self._word_input is None:
            raise ValueError(
                f"{self.name} must take learned words for that; encoders of kind static and"
                " transformers do"
            )
        return self._word_input

    def _computed(self, text: str) -> TextStates:
        (states,) = map_in_threads(self._checked, [text], 1)
        return states

    def _checked(self, text: str) -> TextStates:
        states = self._compute(text)
        if not (states.tokens.isfinite().all() and states.pooled.isfinite().all()):
            raise ValueError(
                f"{self.name} must make finite numbers of every text, it made NaN or infinity of"
                f" {shortened(text)}; use another text encoder"
            )
        return states


@lru_cache(maxsize=2)
def _taught(
    model: TextModel, words: tuple[str, ...], vectors: tuple[tuple[float, ...], ...]
) -> TextModel:
    """An encoder that has learned words; the last two are kept, with what they have computed."""
    learned = grouped(words, vectors)

    @torch.no_grad()
    def compute(text: str) -> TextStates:
        has_words = any(word in text for word in learned)
        return model.states_with(text, learned) if has_words else model.states(text)

    compute(words[0])  # which checks the length of the vectors
    return TextModel(model.name, model.digest, compute, model._num_tokens, model._word_input)


def plain(text: str) -> str:
    """A text as encoders take it: halves of characters, which no file can hold, become ``?``.

    Example:
        >>> plain("half: " + chr(0xD83D))
        'half: ?'
    """
    return text.encode("utf-8", "replace").decode()


def text_digest(text: str) -> int:
    """xxh3-64 of a text as a signed integer, under which its states are stored.

    Example:
        >>> text_digest("red heart")
        6250642377008447687
    """
    return xxhash.xxh3_64_intdigest(plain(text).encode()) - 2**63


def shortened(text: str) -> str:
    """A text as messages show it: on one line, with at most 60 characters.

    Example:
        >>> len(shortened("a" * 100)), shortened("two\\nlines")
        (62, "'two lines'")
    """
    shown = " ".join(plain(text).split())
    return repr(shown if len(shown) <= 60 else f"{shown[:57]}...")
