"""Text encoders: descriptions of how a caption becomes what a network is told.

A text encoder is a description, like :class:`edm2lite.models.encoders.Encoder`: where the weights
are, their digest, and statistics of the training captions. It travels as JSON in every model file.
"""

from __future__ import annotations

import abc
import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from edm2lite.kinds import Kinds
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.conditions import Condition, Tokens, Vector
from edm2lite.text.model import TextModel, TextStates
from edm2lite.text.statistics import MEASURED, Moments, distinct
from edm2lite.text.words import grouped

TEXT_ENCODERS: Kinds[type[TextEncoder]] = Kinds(
    "text encoder",
    {
        "static": "edm2lite.text.static:StaticTextEncoder",
        "transformers": "edm2lite.text.transformers:TransformersTextEncoder",
    },
)
"""Text encoders by ``kind``."""


LONGEST = 4096  # tokens of a text


@dataclass(frozen=True, kw_only=True)
class TextEncoder(abc.ABC):
    """Description of the way from a text to tokens and a pooled vector.

    A network is told ``(state - mean) / std`` per channel, with statistics of the training
    captions. Padding is zero, and so is everything that is made of an empty text: not told.

    Attributes:
        kind: Name in :data:`TEXT_ENCODERS`, or ``module:Class`` of an encoder of yours.
        source: Place of the encoder.
        num_tokens: Number of tokens after which a text is cut off.
        digest: Digest of weights and tokenizer, checked on loading; None for any.
        mean: Mean of each channel of the tokens.
        std: Standard deviation of each channel of the tokens.
        pooled_mean: Mean of each channel of the pooled vector.
        pooled_std: Standard deviation of each channel of the pooled vector.
        words: Word that each learned vector belongs to (:mod:`edm2lite.text.words`).
        word_vectors: Learned vectors at the input of the encoder, of one length.

    Example:
        >>> @dataclass(frozen=True, kw_only=True)
        ... class Letters(TextEncoder):
        ...     kind: str = "my_module:Letters"
        ...     def load(self, device="cpu", download=False):
        ...         def codes(text):
        ...             values = torch.tensor([[float(ord(c))] for c in text[: self.num_tokens]])
        ...             return TextStates(values, values.mean(0))
        ...         return TextModel("letters", "0", codes, self.num_tokens)
        >>> encoder = Letters(num_tokens=3).measured(["ab", "c"])
        >>> encoder.mean, encoder.pooled_mean
        ((98.0,), (98.25,))
        >>> encoder.encode(["b", ""])["tokens"].flatten(1)
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """

    kind: str
    source: str = ""
    num_tokens: int = 77
    digest: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    pooled_mean: tuple[float, ...] = ()
    pooled_std: tuple[float, ...] = ()
    words: tuple[str, ...] = ()
    word_vectors: tuple[tuple[float, ...], ...] = ()

    kinds: ClassVar[Kinds[type[TextEncoder]]] = TEXT_ENCODERS

    def __post_init__(self) -> None:
        if not 1 <= self.num_tokens <= LONGEST:
            raise ValueError(
                f"text.num_tokens must lie between 1 and {LONGEST}, got {self.num_tokens}"
            )
        for prefix in ("", "pooled_"):
            mean, std = getattr(self, f"{prefix}mean"), getattr(self, f"{prefix}std")
            if len(mean) != len(std):
                raise ValueError(
                    f"text.{prefix}mean and text.{prefix}std must have one value per channel each,"
                    f" got {len(mean)} and {len(std)}"
                )
            if not all(value > 0 for value in std):
                raise ValueError(f"text.{prefix}std must be positive, got {min(std)}")
        vectors = tuple(tuple(vector) for vector in self.word_vectors)
        object.__setattr__(self, "word_vectors", vectors)
        grouped(self.words, vectors)

    @abc.abstractmethod
    def load(self, device: str = "cpu", download: bool = False) -> TextModel:
        """The encoder in memory, whatever its digest.

        Args:
            device: Device that computes.
            download: Whether the encoder may come from the Hub, because a person has named it.
        """

    def located(self) -> TextEncoder:
        """This description with a place that holds wherever it is read."""
        return self

    def agrees(self, other: TextEncoder | None) -> bool:
        """Whether another description, or None, means the same numbers, wherever the files are.

        What else the other one has learned does not count.
        """
        if other is None:
            return False
        same = dataclasses.replace(
            other, source=self.source, words=self.words, word_vectors=self.word_vectors
        )
        return same == self

    def unmeasured(self) -> TextEncoder:
        """This description without digest and statistics."""
        return dataclasses.replace(
            self, digest=None, mean=(), std=(), pooled_mean=(), pooled_std=()
        )

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing that :meth:`encode` needs."""
        return self.digest is not None and bool(self.mean) and bool(self.pooled_mean)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What a network is told of a text; the encoder must be complete."""
        pooled = Vector("pooled", len(self.pooled_mean))
        return pooled, Tokens(self.num_tokens, len(self.mean))

    def opened(self, device: str = "cpu", download: bool = False) -> TextModel:
        """The encoder in memory.

        Args:
            device: Device that computes.
            download: Whether the encoder may come from the Hub, because a person has named it.

        Raises:
            ValueError: If there is no such encoder, or its weights or tokenizer are others.
            ImportError: If a package that it needs is not installed.
        """
        model = self.load(device, download)
        if self.digest is not None and model.digest != self.digest:
            raise ValueError(
                f"the text encoder {model.name} must be the one of digest {self.digest}, its"
                f" weights and tokenizer have {model.digest}; name the right one"
            )
        stated = len(self.mean), len(self.pooled_mean)
        if self.is_complete and stated != model.widths:
            raise ValueError(
                f"statistics of the text encoder {model.name} must be of its {model.widths[0]} and"
                f" {model.widths[1]} channels, got {stated[0]} and {stated[1]}; measure them again"
            )
        return model.taught(self.words, self.word_vectors) if self.words else model

    def with_word(self, word: str, vectors: Tensor) -> TextEncoder:
        """The same encoder with one more learned word.

        Args:
            word: The word; it has no spaces.
            vectors: [n, D] vectors at the input of the encoder.

        Raises:
            ValueError: If it has that word already, or vectors of another length.

        Example:
            >>> from edm2lite.text import StaticTextEncoder
            >>> encoder = StaticTextEncoder(num_tokens=4).measured(["a red heart", "a blue car"])
            >>> taught = encoder.with_word("<x>", encoder.opened().input_rows("heart"))
            >>> told = [e.encode([t])["tokens"] for e, t in ((taught, "<x>"), (encoder, "heart"))]
            >>> told[0].equal(told[1])
            True
        """
        if word in self.words:
            raise ValueError(f"a learned word must be new, {word} is one already; take another")
        rows = tuple(tuple(row) for row in vectors.double().tolist())
        return dataclasses.replace(
            self,
            words=(*self.words, *[word] * len(rows)),
            word_vectors=(*self.word_vectors, *rows),
        )

    def measured(self, texts: Iterable[str], *, download: bool = False) -> TextEncoder:
        """The same encoder with its digest, and with statistics of these captions.

        Args:
            texts: Captions. Each counts once, empty ones do not; of more than :data:`MEASURED`,
                those of the lowest digests are taken.
            download: Whether the encoder may come from the Hub, because a person has named it.

        Raises:
            ValueError: If there is no such encoder, or the captions do not differ.
        """
        model = self.opened(download=download)
        return self.with_statistics_of(model.digest, model.each(distinct(texts)[:MEASURED]))

    def with_statistics_of(self, digest: str, states: Iterable[TextStates]) -> TextEncoder:
        """The same encoder with a digest, and with statistics of these states."""
        tokens, pooled = Moments(), Moments()
        for state in states:
            if len(state.tokens):
                tokens.add(state.tokens)
                pooled.add(state.pooled[None])
        mean, std = tokens.statistics()
        pooled_mean, pooled_std = pooled.statistics()
        return dataclasses.replace(
            self.located(), digest=digest,
            mean=mean, std=std, pooled_mean=pooled_mean, pooled_std=pooled_std,
        )  # fmt: skip

    def encode(self, texts: Sequence[str]) -> Conditioning:
        """What a network is told of each text.

        Args:
            texts: Captions or prompts; an empty one is not told.

        Returns:
            ``pooled`` [N, P] and ``tokens`` [N, num_tokens, D], float32.

        Raises:
            ValueError: If the description is not complete, the encoder is not on this machine, or
                its weights or tokenizer are others.
        """
        model = self.opened() if any(text.strip() for text in texts) else None
        states = [model.states(text) if model and text.strip() else None for text in texts]
        pooled = torch.stack([self.pooled_of(state) for state in states])
        tokens = torch.stack([self.tokens_of(state) for state in states])
        return Conditioning({"pooled": pooled, "tokens": tokens})

    def pooled_of(self, states: TextStates | None) -> Tensor:
        """The pooled vector [P] of one text, standardized; zero if there is no text."""
        _, _, mean, std = self._statistics
        if states is None or not len(states.tokens):
            return torch.zeros_like(mean)
        return (states.pooled - mean) / std

    def tokens_of(self, states: TextStates | None) -> Tensor:
        """The tokens [num_tokens, D] of one text, standardized; padding is zero."""
        mean, std, _, _ = self._statistics
        tokens = torch.zeros(self.num_tokens, len(mean))
        if states is not None:
            tokens[: len(states.tokens)] = (states.tokens - mean) / std
        return tokens

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        if not self.is_complete:
            raise ValueError(
                "a text encoder must have a digest and statistics of captions to encode, this one"
                " has none; take them from captions by measured(texts)"
            )
        mean, std = torch.tensor(self.mean), torch.tensor(self.std)
        return mean, std, torch.tensor(self.pooled_mean), torch.tensor(self.pooled_std)

    def to_json(self) -> str:
        """The description that travels in every model file."""
        return json.dumps(dataclasses.asdict(self), separators=(",", ":"))
