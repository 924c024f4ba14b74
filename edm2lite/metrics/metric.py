"""What a metric is: rows of numbers, one per image, and one value from all of them.

Metrics of edm2lite and metrics of yours are subclasses of :class:`ImageMetric` (rows of generated
or given images), :class:`edm2lite.metrics.features.FeatureMetric` (the rows are features, compared
with those of reference images), or :class:`Metric` itself. A class of yours is chosen by the name
``module:Class``, and then evaluated and swept like any other.
"""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from numpy.typing import NDArray
from torch import Tensor

from edm2lite.metrics.influence import cautious_covariance, covariance
from edm2lite.metrics.interval import normal_limits, wilson_limits
from edm2lite.metrics.measurement import ImageRows, Measurement
from edm2lite.metrics.moments import Array
from edm2lite.metrics.rows import RowFactory
from edm2lite.metrics.tails import Tails
from edm2lite.network.conditioning import Conditioning

if TYPE_CHECKING:
    from edm2lite.metrics.image_source import Generation
    from edm2lite.metrics.inputs import MetricInputs
    from edm2lite.models.loading import Model

NUM_GENERATED = 50_000
"""Number of images that a model generates where none is given."""


Needs = Literal["images", "reference", "reference features", "CLIP", "held-out images"]
"""What a metric is computed from: generated or given images alone; or compared with the moments, or
the features, of reference images; or with their captions, by a CLIP; or the network itself on
images that it was not trained on."""


class Metric(abc.ABC):
    """A number that says how good a model or a set of images is.

    A subclass sets the class attributes and defines :meth:`measure` and :meth:`rows_of`.

    Example:
        >>> from edm2lite.metrics import find_metric
        >>> kid = find_metric("kid")
        >>> issubclass(kid, Metric), kid.label, kid.needs
        (True, 'KID', 'reference features')
    """

    name: ClassVar[str]
    """Name in :data:`edm2lite.metrics.METRICS`. [default: ``module:Class`` of the class]"""

    label: ClassVar[str]
    """Name in tables. [default: the name of the class]"""

    axis_label: ClassVar[str]
    """Name on the axis of a plot. [default: the label]"""

    record_name: ClassVar[str]
    """Name in the ledger of a sweep. [default: the name]"""

    lower_is_better: ClassVar[bool] = True
    """Whether the best value is the lowest."""

    is_share: ClassVar[bool] = False
    """Whether the value is a share between 0 and 1, whose interval must stay between them."""

    is_cautious: ClassVar[bool] = True
    """Whether intervals are widened where the influences have heavy tails; never of shares."""

    number_format: ClassVar[str] = ".4f"
    """Format of the value in a table."""

    needs: ClassVar[Needs] = "images"
    """What it is computed from besides a model or images."""

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        own = {"name": f"{cls.__module__}:{cls.__qualname__}", "label": cls.__name__}
        for key, value in own.items():
            if key not in vars(cls):
                setattr(cls, key, value)
        for key, value in {"axis_label": cls.label, "record_name": cls.name}.items():
            if key not in vars(cls):
                setattr(cls, key, value)

    @classmethod
    @abc.abstractmethod
    def create(cls, inputs: MetricInputs) -> list[Metric]:
        """The metric, made of what it needs; once for every reference that fits it.

        Raises:
            ValueError: If something that it needs is missing.
        """

    @abc.abstractmethod
    def rows_of(self, model: Model, generation: Generation) -> tuple[dict[str, Any], RowFactory]:
        """Everything that the rows of a model depend on, and the function that makes them."""

    @abc.abstractmethod
    def measure(self, rows: ImageRows) -> Measurement:
        """The value of the metric."""

    @classmethod
    def uses_images(cls) -> bool:
        """Whether it is computed from generated or given images, not from the network itself."""
        return cls.needs != "held-out images"

    @property
    def title(self) -> str:
        """Its name in results, with what it depends on where the name alone could mislead."""
        return self.name

    @property
    def protocol(self) -> dict[str, Any]:
        """Everything that the value depends on besides the rows, as JSON can hold it."""
        return {}

    @property
    def minimum_images(self) -> int:
        """Number of images below which the value says little; a search begins with as many."""
        return 256

    def num_images(self, num: int | None) -> int:
        """Number of images to measure a model on, where ``num`` are asked for.

        Raises:
            ValueError: If there are not that many.
        """
        return NUM_GENERATED if num is None else num

    def record(self, generation: Generation) -> dict[str, Any]:
        """What a ledger keeps of how a model was measured, as JSON can hold it."""
        return {**self.protocol, **generation.record} if self.uses_images() else self.protocol

    def covariance(self, influences: Sequence[Array]) -> Array:
        """[L, L] covariance over seeds of L values, from the influences [J, N] of each."""
        cautious = self.is_cautious and not self.is_share
        return (cautious_covariance if cautious else covariance)(influences)

    def is_heavy(self, influences: Array) -> bool:
        """Whether a few images decide the interval, so that it may be too narrow."""
        return not self.is_share and Tails.of(influences).are_heavy

    def limits(self, value: float, variance: float, influences: Array) -> tuple[float, float]:
        """:meth:`interval`, reaching further on the side to which the influences are skewed."""
        num, tails = influences.shape[1], Tails.of(influences)
        low, high = self.interval(value, variance, num)
        if self.is_share or not self.is_cautious:
            return low, high
        far = self.interval(value, variance * tails.stretch**2, num)
        return (low, far[1]) if tails.skewness > 0 else (far[0], high)

    def interval(self, value: float, variance: float, num: int) -> tuple[float, float]:
        """95 % limits of the value's expectation at this number of images.

        Args:
            value: The value.
            variance: Variance of the value over seeds.
            num: Number of images.
        """
        if self.is_share:
            return wilson_limits(value, variance, num)
        return normal_limits(value, math.sqrt(variance))


class ImageMetric(Metric):
    """A metric of images without a reference: rows of each image, and a value from the rows.

    Example:
        The mean brightness of the images, from 0 to 255:

        >>> class Brightness(ImageMetric):
        ...     def rows(self, images, conditioning):
        ...         return images.float().mean(dim=(1, 2, 3))[:, None].numpy()
        ...
        ...     def measure(self, rows):
        ...         return Measurement.of_mean(rows.array()[:, 0], rows.num_classes)
        >>> import torch
        >>> from edm2lite.metrics import evaluate
        >>> images = torch.tensor([10, 30], dtype=torch.uint8)[:, None, None, None]
        >>> evaluate(images.expand(2, 1, 8, 8), metrics=[Brightness])[0].value
        20.0
    """

    @classmethod
    def create(cls, inputs: MetricInputs) -> list[Metric]:
        """See :meth:`Metric.create`."""
        return [cls()]

    @abc.abstractmethod
    def rows(self, images: Tensor, conditioning: Conditioning) -> NDArray[Any]:
        """Numbers of each image, [N, D].

        Args:
            images: [N, C, H, W] uint8 on the CPU.
            conditioning: What the network was told of each image, or what the data set says.
        """

    @property
    def row_key(self) -> dict[str, Any]:
        """What the rows of an image depend on, as JSON can hold it."""
        return {"rows": self.name}

    def check_images(self, name: str, shape: tuple[int, ...]) -> None:
        """Raise ValueError if the metric cannot be computed of images of this shape (C, H, W)."""

    def rows_of(self, model: Model, generation: Generation) -> tuple[dict[str, Any], RowFactory]:
        """See :meth:`Metric.rows_of`."""
        return generation.rows(self, model)
