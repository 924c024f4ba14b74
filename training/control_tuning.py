"""Fine-tuning of the kind ``controlnet``: a second encoder, beside a frozen network."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.loading import Model
from edm2lite.network.controlnet import Control
from edm2lite.network.unet import UNetConfig

from .tuned import Tuned, added
from .tuning import Tuning


@dataclass(frozen=True, kw_only=True)
class ControlNet(Tuning):
    """Train a copy of the encoder, beside the frozen network, that follows an image.

    Attributes:
        condition: Name of the condition image in the data set.
        channels: Number of its channels.

    Raises:
        ValueError: If the name is no identifier, or there are no channels.

    Example:
        >>> ControlNet(channels=3).control.condition.describe()
        'a condition image of 3 channels'
    """

    kind: Literal["controlnet"] = "controlnet"
    condition: str = "image"
    channels: int = 1

    def __post_init__(self) -> None:
        _ = self.control  # checks

    @property
    def control(self) -> Control:
        """The image that the network is to follow."""
        return Control(name=self.condition, channels=self.channels)

    def fields(self, net: PrecondConfig) -> dict[str, Any]:
        """The control, behind those that the network has."""
        if not isinstance(net.backbone, UNetConfig):
            raise ValueError(
                "tune.kind=controlnet needs a network of the kind unet, which has an encoder, got"
                f" {net.backbone.kind}"
            )
        others = [control for control in net.backbone.controls or () if control != self.control]
        return {"controls": (*others, self.control)}

    def begin(self, net: Precond, base: Model, seed: int) -> Tuned:
        """See :meth:`Tuning.begin`.

        Raises:
            ValueError: If the model follows an image of that name already.
        """
        known = getattr(base.net.config.backbone, "controls", None) or ()
        if any(control.name == self.condition for control in known):
            raise ValueError(
                f"{base.name} follows {self.condition} already, and a second control needs a name"
                " of its own; set tune.condition to another one, or adapt the model before it"
            )
        backbone: Any = net.backbone
        branch = backbone.controls[self.condition]
        branch.copy_encoder_(backbone.enc)
        own = {"controls": [dataclasses.asdict(self.control)]}
        return added(net, branch, "controlnet", base, own)
