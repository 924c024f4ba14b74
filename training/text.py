"""What a run tells its network in words: the text encoder, and captions as it makes them."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from edm2lite.dataset import ImageDataset, with_text
from edm2lite.text import CaptionStore, TextEncoder

from .config import RunConfig, load_config

logger = logging.getLogger(__name__)


def with_text_encoder(config: RunConfig, dataset: ImageDataset, run_dir: Path) -> RunConfig:
    """The configuration, with what it leaves out of the text encoder.

    Digest and statistics are those of the run, if it has begun, of the store that ``data.captions``
    names, or else they are taken from the captions of the data set.

    Args:
        config: Configuration of the run.
        dataset: Training data.
        run_dir: Folder of the run, which need not exist.

    Raises:
        FileNotFoundError: If there is no such store.
        ValueError: If the network is told no text, the data set has no captions, or the encoder is
            not what the configuration says.
    """
    encoder = config.text
    if encoder is None and config.data.captions is None:
        return config
    if not takes_text(config):
        raise ValueError(
            f"text and data.captions must be left out for a network that is told no text,"
            f" net.backbone takes {', '.join(config.net.backbone.condition_names) or 'nothing'};"
            " set net.backbone.text"
        )
    if config.data.captions is not None:
        stored = CaptionStore(config.data.captions).encoder
        if encoder is not None:
            _check_store(config.data.captions, stored, encoder)
        encoder = encoder if encoder is not None and encoder.is_complete else stored
    assert encoder is not None
    if not encoder.is_complete:
        encoder = _recorded(encoder, run_dir) or _measured(encoder, dataset)
    return dataclasses.replace(config, text=encoder)


def with_captions(config: RunConfig, dataset: ImageDataset) -> ImageDataset:
    """The training data, with conditions made of captions if the network is told text.

    Fine-tuning may have captions of its own, see :meth:`.tuning.Tuning.retold`.

    Args:
        config: Configuration of the run, with its text encoder.
        dataset: Training data.

    Raises:
        ValueError: As :func:`edm2lite.dataset.with_text`.
    """
    if config.text is None:
        return dataset
    if config.tune is not None:
        dataset = config.tune.retold(dataset)
    store = None if config.data.captions is None else CaptionStore(config.data.captions)
    return with_text(dataset, config.text, store)


def takes_text(config: RunConfig) -> bool:
    """Whether the network of a configuration is told text."""
    return bool({"pooled", "tokens"} & set(config.net.backbone.condition_names))


def _check_store(place: str, stored: TextEncoder, encoder: TextEncoder) -> None:
    for name in ("kind", "num_tokens", "digest"):
        found, needed = getattr(stored, name), getattr(encoder, name)
        if needed not in (None, found):
            raise ValueError(
                f"data.captions must be a store of the encoder of text, {place} has {name}"
                f" {found} where text.{name} is {needed}; leave text out to take that of the store"
            )


def _recorded(encoder: TextEncoder, run_dir: Path) -> TextEncoder | None:
    """The encoder as the run has it if it has begun: other machines may measure other last digits.

    None if the run has not begun, or with another encoder.
    """
    if not (run_dir / "config.yaml").is_file():
        return None
    found = load_config(str(run_dir)).text
    if found is None or not found.is_complete:
        return None
    is_same = found.unmeasured() == encoder.located().unmeasured()
    return found if is_same and encoder.digest in (None, found.digest) else None


def _measured(encoder: TextEncoder, dataset: ImageDataset) -> TextEncoder:
    if dataset.captions is None:
        return encoder  # with_captions says what is missing
    texts = [text for texts in dataset.captions.texts for text in texts]
    logger.info("text encoder: statistics of %d captions", len(texts))
    return encoder.measured(texts, download=True)
