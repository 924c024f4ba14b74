"""What a network is told in words: prompts of seeds, and captions of a data set as prompts.

With P prompts, seed s gets prompt s mod P. Prompts are encoded batch by batch, each text alone, so
that an image depends on its own prompt and on no other.
"""

from __future__ import annotations

from collections.abc import Sequence

from edm2lite.dataset import ImageDataset
from edm2lite.dataset.captions import as_captions
from edm2lite.models.loading import Model
from edm2lite.network.conditioning import Conditioning
from edm2lite.text.encoder import TextEncoder


def prompts_of_seeds(prompts: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """The prompt of each seed, one of ``prompts`` after the other.

    Args:
        prompts: Prompts; space around them is left out.
        seeds: Seeds of the images.

    Raises:
        ValueError: If there are no prompts, or one is no text that a file can hold.

    Example:
        >>> prompts_of_seeds(["red heart", "blue car"], [0, 1, 2])
        ['red heart', 'blue car', 'red heart']
    """
    if isinstance(prompts, str) or not len(prompts):
        raise ValueError(f"prompts must be a list of at least one text, got {prompts!r}")
    names = [f"prompt {i + 1}" for i in range(len(prompts))]
    checked = as_captions(list(prompts), names, "prompts")
    texts = [""] * len(prompts) if checked is None else [checked.text(i) for i in range(len(names))]
    return [texts[seed % len(texts)] for seed in seeds]


def text_conditions(model: Model) -> list[str]:
    """Names of the conditions that the text encoder of a model makes for its network."""
    if model.text_encoder is None:
        return []
    taken = model.net.config.backbone.condition_names
    return [c.name for c in model.text_encoder.conditions if c.name in taken]


def captions_of_seeds(
    model: Model, dataset: ImageDataset | None, seeds: Sequence[int]
) -> list[str] | None:
    """The first caption of image s mod N for each seed s; None where the model reads no captions.

    It does not if the data set has none, or has made numbers of them itself.

    Args:
        model: The model that will generate.
        dataset: Data set of the conditions, or None.
        seeds: Seeds of the images.
    """
    if dataset is None or dataset.captions is None or not reads_captions(model, dataset):
        return None
    return [dataset.captions.text(seed % len(dataset)) for seed in seeds]


def reads_captions(model: Model, dataset: ImageDataset) -> bool:
    """Whether the captions of a data set are prompts of a model."""
    names = {*text_conditions(model)}
    made = {c.name for c in dataset.conditions}
    return dataset.captions is not None and bool(names) and not names & made


def text_encoder_of(model: Model) -> TextEncoder:
    """The text encoder that makes of prompts what the network of a model is told.

    Raises:
        ValueError: If the model is told no text.
    """
    if model.text_encoder is None or not text_conditions(model):
        raise ValueError(f"{model.name} takes no prompts, it is told no text; leave them out")
    return model.text_encoder


def with_prompts(model: Model, told: Conditioning, prompts: Sequence[str]) -> Conditioning:
    """A conditioning with what a network is told of a prompt for each row.

    Args:
        model: The model that will generate.
        told: What it is told besides.
        prompts: Text of each row.

    Raises:
        ValueError: If the model is told no text, or its text encoder is not on this machine.
    """
    encoded = text_encoder_of(model).encode(prompts).only(text_conditions(model))
    return Conditioning({**told.values, **encoded.values})
