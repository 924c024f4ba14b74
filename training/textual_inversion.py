"""Textual inversion: the vectors of a new word at the input of the text encoder are trained.

The captions of the images are templates with the word in them. In each step the text encoder makes
of every template what the network is told, with derivatives, and the network, which is frozen, sees
that in place of what the data set has for that template.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.captions import Captions
from edm2lite.diffusion.precond import Precond
from edm2lite.models.model import Model
from edm2lite.network.conditioning import Conditioning
from edm2lite.text.encoder import TextEncoder
from edm2lite.text.words import check_word

from .tuned import Added, Tuned, new_adapter
from .tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class TextualInversion(Tuning):
    """Train the vectors of a new word, and nothing else.

    Attributes:
        word: The word, as prompts will have it: without spaces, and in no other text.
        start: Text whose vectors it begins with, in turn.
        vectors: Number of vectors.
        texts: Captions of every image, one of which is drawn for each sample; ``{}`` stands for
            the word.

    Raises:
        ValueError: If a value is out of range, or a caption lacks the word.

    Example:
        >>> TextualInversion(word="<cat>", start="cat", texts=("a {}", "{}")).captions
        ('a <cat>', '<cat>')
    """

    kind: Literal["textual_inversion"] = "textual_inversion"
    word: str
    start: str
    vectors: int = 1
    texts: tuple[str, ...] = ("{}",)

    def __post_init__(self) -> None:
        check_word(self.word)
        if not 1 <= self.vectors <= 64:
            raise ValueError(f"tune.vectors must lie between 1 and 64, got {self.vectors}")
        if len({*self.texts}) < len(self.texts) or not all("{}" in text for text in self.texts):
            raise ValueError(
                f"tune.texts must be different texts with {{}} for the word, got {[*self.texts]}"
            )

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions of every image."""
        return tuple(text.replace("{}", self.word) for text in self.texts)

    def retold(self, dataset: ImageDataset) -> ImageDataset:
        """See :meth:`.tuning.Tuning.retold`."""
        captions = Captions([self.captions] * len(dataset))
        return dataclasses.replace(dataset, captions=captions)

    def begin(self, net: Precond, base: Model, seed: int) -> Tuned:
        """See :meth:`.tuning.Tuning.begin`.

        Raises:
            ValueError: If the model is told no text, its encoder takes no words, or knows it.
        """
        encoder = base.text_encoder
        if encoder is None:
            raise ValueError(
                f"tune.kind=textual_inversion needs a model that is told text, {base.name} is not"
            )
        with torch.device("cpu"):
            rows = encoder.opened().input_rows(self.start)
            encoder.with_word(self.word, rows)  # which refuses a word that it has
            scale = rows.square().mean().sqrt().item()
            first = rows[torch.arange(self.vectors) % len(rows)] / scale
        net.requires_grad_(False)
        word = Word(first.to(next(net.parameters()).device), scale)
        net.add_module("word", word)
        if not word.vectors.is_meta:  # where only sizes are asked for
            taken = net.config.backbone.condition_names
            names = [c.name for c in encoder.conditions if c.name in taken]
            telling = Telling(word, self.word, encoder, self.captions, names)
            net.register_forward_pre_hook(telling, with_kwargs=True)
        told = {"word": self.word, "scale": scale}
        return Added(net, new_adapter(self.kind, base, text=told))


class Word(nn.Module):
    """The vectors of a word, in units of the RMS of those that they begin with.

    Args:
        vectors: [n, D] vectors, of RMS about 1.
        scale: RMS.
    """

    def __init__(self, vectors: Tensor, scale: float):
        super().__init__()
        self.vectors, self.scale = nn.Parameter(vectors.clone()), scale

    def forward(self) -> Tensor:
        """The vectors [n, D] at the input of a text encoder."""
        return self.vectors * self.scale


class Telling:
    """Tells a network what the text encoder makes of captions with the word as it is now.

    A hook before the forward pass of a denoiser.

    Note [which caption]
        A network is given what the encoder makes of a caption whose new word is a text like any
        other. By these numbers the caption is recognized; rows that are of none of the captions (a
        dropped one, an image of the prior) stay as they are.

    Args:
        word: Vectors of the word.
        name: The word.
        encoder: Text encoder without the word.
        captions: Captions with the word.
        names: Conditions that the network takes, ``pooled``, ``tokens`` or both.

    Raises:
        ValueError: If the encoder cannot tell the captions apart.
    """

    def __init__(
        self,
        word: Word,
        name: str,
        encoder: TextEncoder,
        captions: Sequence[str],
        names: Sequence[str],
    ):
        self._word, self._name, self._encoder = word, name, encoder
        self._captions, self._names = captions, names
        self._model = encoder.opened()
        self._known = encoder.encode(captions)
        rows = torch.cat([self._known[name].flatten(1) for name in names], 1)
        if len(rows.unique(dim=0)) < len(rows):
            raise ValueError(
                f"tune.texts must be different to {self._model.name}, which cuts texts after"
                f" {encoder.num_tokens} tokens; give others"
            )

    def __call__(self, _net: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Hook before the forward pass of a denoiser: (x, sigma, conditioning)."""
        x, sigma, *rest = args
        given = rest[0] if rest else kwargs.pop("conditioning", None)
        told = Conditioning.of(given)
        return (x, sigma, Conditioning({**told.values, **self._now(told)})), kwargs

    def _now(self, told: Conditioning) -> dict[str, Tensor]:
        """The text conditions of a batch, with those of captions as they are now."""
        given = {name: told[name] for name in self._names if name in told}
        if len(given) < len(self._names):
            return {}
        is_of = self._recognized(given)  # [N, captions]
        words = {self._name: self._word().cpu()}  # where encoders give their states
        states = [self._model.states_with(text, words) for text in self._captions]
        made = {
            "pooled": [self._encoder.pooled_of(state) for state in states],
            "tokens": [self._encoder.tokens_of(state) for state in states],
        }
        now = {}
        for name, values in given.items():
            rows = torch.stack(made[name]).to(values)
            new = torch.einsum("nc,c...->n...", is_of.to(rows.dtype), rows)
            known = is_of.any(1).view(-1, *[1] * (values.ndim - 1))
            now[name] = torch.where(known, new, values)
        return now

    def _recognized(self, given: dict[str, Tensor]) -> Tensor:
        """[N, captions] whether a row is what the encoder makes of a caption."""
        found = None
        for name, values in given.items():
            known = self._known[name].to(values)
            equal = (values[:, None] == known[None]).flatten(2).all(2)
            found = equal if found is None else found & equal
        assert found is not None
        return found
