"""Whether a model, its guide and the sampler settings go together, before anything is generated."""

from __future__ import annotations

from typing import Literal

from edm2lite.models.loading import Model
from edm2lite.network.conditions import described, missing
from edm2lite.sampling.settings import Sampling

Guide = Model | Literal["unconditional"] | None
"""A weaker model, the model itself without its conditions, or no guide."""


def check_sampling(
    model: Model, guide: Guide, sampling: Sampling, negative_prompt: str = ""
) -> None:
    """Raise ValueError, with the reason, unless ``model`` can sample like that with this guide.

    Args:
        model: The model.
        guide: Weaker denoiser, or None.
        sampling: Sampler settings.
        negative_prompt: What an unconditional guide is told in words.
    """
    _check_size(model, sampling)
    if not getattr(model.net.config.backbone, "controls", None):
        for name in ("control_guidance", "control_weights"):
            if name in sampling.changes():
                raise ValueError(
                    f"{name} is for models with a ControlNet, {model.name} has none; leave it out"
                )
    if sampling.decoder_dtype is not None and not model.encoder.has_network:
        raise ValueError(
            f"decoder_dtype is for models of latents, {model.name} makes pixels; leave it out"
        )
    if negative_prompt and (guide != "unconditional" or sampling.guidance == 1):
        raise ValueError(
            "a negative prompt is what the unconditional guide is told; give a weight of guidance"
            " other than 1, and no other model as the guide"
        )
    _check_guide(model, guide, sampling, is_told=bool(negative_prompt))
    _check_levels(model, sampling)


def notes(model: Model, guide: Guide, sampling: Sampling) -> list[str]:
    """What is possible, and should be known before the model samples like that; a line each.

    Args:
        model: The model.
        guide: Weaker denoiser, or None.
        sampling: Settings that :func:`check_sampling` allows.

    Example:
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.models import PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> model = Model("tiny", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
        >>> (note,) = notes(model, None, Sampling(size=(8, 16)))
        >>> print(note.rpartition(", ")[0])
        tiny: its training resolution is 8 x 8, it generates 8 x 16
    """
    found, side = [], model.net.config.backbone.img_resolution
    if sampling.size not in (None, (side, side)):
        height, width = sampling.size or (side, side)
        found.append(
            f"{model.name}: its training resolution is {side} x {side}, it generates {height} x"
            f" {width}, a size that it may not have learned"
        )
    if guide == "unconditional" and "label_dropout" not in model.metadata:
        found.append(
            f"{model.name}: its file does not say whether it was trained with label dropout, which"
            " an unconditional guide needs"
        )
    return found


def _check_size(model: Model, sampling: Sampling) -> None:
    multiple = model.net.config.backbone.size_multiple
    if sampling.size is not None and any(n < 1 or n % multiple for n in sampling.size):
        height, width = sampling.size
        raise ValueError(
            f"{model.name} makes images whose sides are multiples of {multiple}, got"
            f" {height} x {width}"
        )


def _check_levels(model: Model, sampling: Sampling) -> None:
    reason = model.net.config.infinite_sigma_error()
    if reason is not None and sampling.levels()[0].isinf():
        raise ValueError(
            f"{model.name} cannot begin at sigma = infinity: {reason}; give a finite sigma_max"
        )


def _check_guide(model: Model, guide: Guide, sampling: Sampling, is_told: bool) -> None:
    if guide is None:
        if sampling.guidance != 1:
            raise ValueError(
                f"guidance of weight {sampling.guidance:g} needs a guide: a weaker model, or"
                " 'unconditional' for a model that was trained with label dropout"
            )
    elif isinstance(guide, Model):
        _check_other_model(model, guide)
    elif guide != "unconditional":
        raise ValueError(f"guide must be a model or 'unconditional', got {guide!r}")
    elif not model.net.config.backbone.conditions:
        raise ValueError(
            f"{model.name} takes no condition, it cannot be its own unconditional guide"
        )
    elif _is_always_told(model) and not (is_told and model.num_classes == 0):
        raise ValueError(
            f"{model.name} cannot be its own unconditional guide: it was trained without label"
            " dropout, and has never seen an image without its conditions; give a weaker model as"
            " the guide, or train with data.label_dropout=0.1"
        )


def _is_always_told(model: Model) -> bool:
    """Whether the file says that the conditions of no sample were left out in training."""
    told = model.metadata
    return "unlabeled" not in told and float(told.get("label_dropout", "nan")) == 0


def _check_other_model(model: Model, guide: Model) -> None:
    own, other = model.net.config.backbone, guide.net.config.backbone
    if guide.identity == model.identity:
        raise ValueError(
            f"the guide must be weaker than {model.name}, {guide.name} has the same weights; for"
            " the model without its conditions say 'unconditional'"
        )
    for name in ("img_channels", "img_resolution"):
        expected, found = getattr(own, name), getattr(other, name)
        if expected != found:
            raise ValueError(
                f"the guide must work on the same images as {model.name}: {name} is {expected},"
                f" that of {guide.name} is {found}"
            )
    if guide.encoder != model.encoder:
        raise ValueError(
            f"the guide must see images as {model.name} does, {guide.name} has another encoder"
        )
    if guide.text_encoder is not None and not guide.text_encoder.agrees(model.text_encoder):
        raise ValueError(
            f"the guide must read text as {model.name} does, {guide.name} has another text encoder,"
            " or other statistics of captions"
        )
    unknown = missing(other.conditions, own.conditions)
    if unknown:
        taken = described(own.conditions)
        raise ValueError(
            f"the guide must take what {model.name} takes ({taken}) or less, {guide.name} takes"
            f" {described(unknown)}"
        )
