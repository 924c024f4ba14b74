"""Captions of a data set as numbers: what a network is told of its images in words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from edm2lite.dataset.base import ImageDataset
from edm2lite.text.encoder import TextEncoder
from edm2lite.text.model import TextStates, shortened
from edm2lite.text.store import CaptionStore


def with_text(
    dataset: ImageDataset, encoder: TextEncoder, store: CaptionStore | None = None
) -> ImageDataset:
    """The same images, with conditions that a text encoder makes of their captions.

    An image without a caption is told nothing. Of several captions, one is drawn for each sample.

    Args:
        dataset: Images with captions.
        encoder: Text encoder, with digest and statistics.
        store: Store of encoded captions, in place of encoding on the fly.

    Raises:
        ValueError: If the images have no captions, the store lacks one or was made by another
            encoder, or the encoder is not on this machine or is another one.

    Example:
        >>> import dataclasses
        >>> from edm2lite.dataset import open_dataset
        >>> from edm2lite.dataset.captions import Captions
        >>> from edm2lite.text import StaticTextEncoder
        >>> digits = open_dataset("digits")
        >>> names = "zero one two three four five six seven eight nine".split()
        >>> captions = Captions([(f"a {names[i]}",) for i in digits.labels])
        >>> digits = dataclasses.replace(digits, captions=captions)
        >>> encoder = StaticTextEncoder(num_tokens=4).measured(names)
        >>> with_text(digits, encoder).conditioning([0, 1])
        Conditioning(label: [2], pooled: [2, 256], tokens: [2, 4, 256])
    """
    captions = dataset.captions
    if captions is None:
        raise ValueError(
            f"{dataset.name} must have captions for a network that is told text, it has none; give"
            " the images some, as docs/data.md says"
        )
    if store is None:
        read: Callable[[str], TextStates] = encoder.opened().states
    else:
        _check_store(dataset, encoder, store)
        read = store.states

    def states(index: int, draw: float) -> TextStates | None:
        text = captions.text(index, draw)
        return read(text) if text else None

    def pooled(index: int, draw: float) -> NDArray[Any]:
        return encoder.pooled_of(states(index, draw)).numpy()

    def tokens(index: int, draw: float) -> NDArray[Any]:
        return encoder.tokens_of(states(index, draw)).numpy()

    for condition, values in zip(encoder.conditions, (pooled, tokens), strict=True):
        dataset = dataset.with_condition(condition, values, is_random=True)
    return dataset


def told_by(dataset: ImageDataset, encoder: TextEncoder | None) -> ImageDataset:
    """The data set with the text conditions of a model, if it has captions and the model reads any.

    Args:
        dataset: Images, which may have captions, or have text conditions already.
        encoder: Text encoder of the model, or None.

    Raises:
        ValueError: As :func:`with_text`.

    Example:
        >>> from edm2lite.dataset import open_dataset
        >>> told_by(open_dataset("digits"), None).conditions
        (ClassLabel(num_classes=10, name='label'),)
    """
    if encoder is None or dataset.captions is None:
        return dataset
    if {c.name for c in encoder.conditions} & {c.name for c in dataset.conditions}:
        return dataset
    return with_text(dataset, encoder)


def _check_store(dataset: ImageDataset, encoder: TextEncoder, store: CaptionStore) -> None:
    made = store.encoder
    if (made.digest, made.num_tokens) != (encoder.digest, encoder.num_tokens):
        raise ValueError(
            f"{store.path} must be of the text encoder of digest {encoder.digest} and"
            f" {encoder.num_tokens} tokens, it is of {made.digest} and {made.num_tokens}; encode"
            " the captions by edm2lite dataset encode-captions"
        )
    assert dataset.captions is not None
    missing = store.missing(text for texts in dataset.captions.texts for text in texts)
    if missing:
        raise ValueError(
            f"{store.path} must hold the captions of {dataset.name}, it lacks {len(missing)}, such"
            f" as {shortened(missing[0])}; encode them by edm2lite dataset encode-captions"
        )
