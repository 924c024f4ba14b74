"""What can be chosen about images: by the model, and by the person who plays with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edm2lite.models.loading import Model
from edm2lite.network.conditions import ConditionImage
from edm2lite.sampling.compatibility import check_sampling
from edm2lite.sampling.prompts import text_conditions
from edm2lite.sampling.settings import Sampling

UNCONDITIONAL, EARLIER = "unconditional", "earlier"
"""Guides: the model without its conditions; the same run at a quarter of its training time."""


@dataclass(frozen=True, kw_only=True)
class Fields:
    """Which choices a model leaves.

    Attributes:
        classes: What each class is called; empty without classes.
        takes_prompts: Whether it is told text.
        controls: Names of the images that it follows.
        side: Height and width of such an image.
        guides: Guides that it can have.
        adapters: Names of adapters that have a strength.

    Example:
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.models import PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, label_dim=2, model_channels=8,
        ...                   channel_mult=(1,), num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> model = Model("tiny", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
        >>> fields = Fields.of(model)
        >>> fields.classes, fields.takes_prompts, fields.guides
        (('class 0', 'class 1'), False, ('unconditional',))
    """

    classes: tuple[str, ...] = ()
    takes_prompts: bool = False
    controls: tuple[str, ...] = ()
    side: int = 0
    guides: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Model, adapters: Sequence[str] = (), *, has_earlier: bool = False) -> Fields:
        """The choices that a model leaves.

        Args:
            model: The model.
            adapters: Names of adapters that can be added to it.
            has_earlier: Whether there are earlier averages of its run.
        """
        backbone = model.net.config.backbone
        images = [c.name for c in backbone.conditions if isinstance(c, ConditionImage)]
        guides = [UNCONDITIONAL] if _may_be_unconditional(model) else []
        return cls(
            classes=tuple(model.class_title(k) for k in range(model.num_classes)),
            takes_prompts=bool(text_conditions(model)),
            controls=tuple(images),
            side=backbone.img_resolution,
            guides=(*guides, *([EARLIER] if has_earlier else [])),
            adapters=tuple(adapters),
        )


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a person has chosen.

    Attributes:
        sigma_rel: Relative width of the average; a model that is no run has none.
        nimg: Training time at its end; None for the latest snapshot.
        classes: Class as ``--class`` takes it: ``number:3`` whatever its name is, ``"all"`` for all
            in turn, "" for those of the seeds.
        prompts: Prompts, of which seed s gets number s mod P; those without text are left out.
        negative_prompt: What to guide away from in words.
        seed: First seed.
        num: Number of images.
        num_steps: Number of solver steps.
        guidance: Weight of guidance, 1 for none.
        guide: One of the guides of the model.
        strengths: Strength of each adapter.
        controls: The image for each condition image, uint8 [H, W] or [H, W, C] of any size.

    Example:
        >>> settings = Settings(sigma_rel=0.132, classes="number:3", num=4)
        >>> settings.model_name("runs/digits"), settings.options("")[:4]
        ('runs/digits@sigma_rel=0.132', ['--class', 'number:3', '--seeds', '0-3'])
    """

    sigma_rel: float | None = None
    nimg: int | None = None
    classes: str = ""
    prompts: tuple[str, ...] = ()
    negative_prompt: str = ""
    seed: int = 0
    num: int = 16
    num_steps: int = 18
    guidance: float = 1.0
    guide: str = ""
    strengths: tuple[float, ...] = ()
    controls: tuple[NDArray[np.uint8] | None, ...] = ()

    def model_name(self, source: str) -> str:
        """The name of the average, as every command takes it.

        Args:
            source: Name of the run, or of the model that is none.
        """
        if self.sigma_rel is None:
            return source
        end = "" if self.nimg is None else f",nimg={self.nimg}"
        return f"{source}@sigma_rel={self.sigma_rel:g}{end}"

    def options(self, guide: str) -> list[str]:
        """The options of ``edm2lite generate`` that draw the same images of a model.

        Args:
            guide: Name of the model that guides, "" for none.
        """
        words: list[str] = []
        for prompt in self.prompts:
            words += ["--prompt", prompt]
        words += ["--class", self.classes] if self.classes else []
        words += ["--seeds", f"{self.seed}-{self.seed + self.num - 1}"]
        words += ["--steps", str(self.num_steps)]
        if guide:
            words += ["--guide", guide, "--guidance", f"{self.guidance:g}"]
        if guide == UNCONDITIONAL and self.negative_prompt:
            words += ["--negative-prompt", self.negative_prompt]
        return [*words, "--grid", "images.png"]


def _may_be_unconditional(model: Model) -> bool:
    try:
        check_sampling(model, "unconditional", Sampling(guidance=2.0))
    except ValueError:
        return False
    return True
