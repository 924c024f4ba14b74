"""DataConfig: which images a run is trained on, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field

from .fields import FREE, Nimg


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data and how it is read.

    Attributes:
        source: ``digits``, or a folder or ZIP of images or latents.
        classes: Classes whose images are used, which keep their numbers. [default: all images]
        per_class: Number of images of each class, the first ones. [default: all of them]
        as_class: Class of the network that all images are told, in place of their own.
        flip: Mirror half of the images, drawn anew each time; condition images are mirrored too
            (pixels only).
        class_balanced: Show every class equally often, however many images it has.
        buckets: Allow images of several sizes: every batch has images of one size.
        label_dropout: Probability that the network is not told the conditions of a sample.
        condition_dropout: Probability that the network is not told one condition of a sample, by
            the name of the condition: ``{label: 0.5}``. Each is drawn apart from the others and
            from ``label_dropout``.
        captions: Folder of encoded captions (``edm2lite dataset encode-captions``). Without it,
            captions are encoded while training.
        workers: Number of threads per process that read and decode.
        prefetch: Number of batches prepared ahead.
    """

    source: str
    classes: tuple[int, ...] | None = None
    per_class: Nimg | None = None
    as_class: int | None = None
    flip: bool = False
    class_balanced: bool = False
    buckets: bool = False
    label_dropout: float = 0.0
    condition_dropout: dict[str, float] = field(default_factory=dict)
    captions: str | None = field(default=None, metadata=FREE)
    workers: int = field(default=2, metadata=FREE)
    prefetch: int = field(default=2, metadata=FREE)

    def __post_init__(self) -> None:
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout must lie in [0, 1), got {self.label_dropout}")
        for name, share in self.condition_dropout.items():
            if not 0 <= share <= 1:
                raise ValueError(f"condition_dropout.{name} must lie in [0, 1], got {share}")
        if self.per_class is not None and self.per_class < 1:
            raise ValueError(f"per_class must be at least 1, got {self.per_class}")
        if self.classes is not None and not self.classes:
            raise ValueError("classes must hold at least one class, got none; leave it out")
        for name in ("workers", "prefetch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
