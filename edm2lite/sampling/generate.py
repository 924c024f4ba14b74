"""Images for given seeds, in batches: an iterable with a length.

An image depends on its seed, its class and the :class:`Sampling` alone. On a CPU that holds to the
last bit. There the kernels that torch picks depend on the shapes that they see and on the number of
threads, and so does rounding; images are therefore computed in batches of one size that depends on
the network alone, the last one filled up, each by one thread.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from edm2lite.models.loading import Model
from edm2lite.network.backbone import BackboneConfig
from edm2lite.network.conditioning import Conditioning, check_conditioning, values_of
from edm2lite.sampling.guidance import Conditioned, Guided, Network, Rescale
from edm2lite.sampling.levels import first_state
from edm2lite.sampling.settings import Sampling
from edm2lite.sampling.solvers import Denoise, Stepwise
from edm2lite.seeding import Purpose, normals, rng
from edm2lite.threads import map_in_threads

PIXELS_AT_ONCE = 4096
"""On a CPU, pixels of all images in a call: 64 images of 8x8, one of 64x64. Larger calls are hardly
faster there (docs/sampling.md), and a larger last one would be filled up for nothing."""


@dataclass(frozen=True)
class GeneratedBatch:
    """Attributes:
    seeds: [N] of the images.
    conditioning: What the network was told about each of them.
    images: [N, C, H, W] uint8 on the CPU.
    """

    seeds: list[int]
    conditioning: Conditioning
    images: Tensor

    @property
    def labels(self) -> list[int] | None:
        """Class of each image, None for a network without classes."""
        return _classes(self.conditioning)


@dataclass(frozen=True)
class Generator:
    """Iterates over batches of generated images; ``len`` is the number of batches.

    Attributes:
        model: Generates; its weights are prepared for sampling on first use.
        seeds: One per image, each at least 0.
        conditioning: What the network is told, one row per seed; None draws what can be drawn
            (classes) from the seeds.
        sampling: How.
        guide: For guidance: another model, or "unlabelled" for ``model`` without its labels, which
            it must have seen so in training (label dropout).
        batch_size: Images at a time on a GPU; a CPU has its own number, see the module.
        device: Where to compute.
        compile: Whether torch.compile makes kernels for the networks first.

    Raises:
        ValueError: Classes or guide that do not fit the model, or noise levels that it cannot take.
    """

    model: Model
    seeds: Sequence[int]
    conditioning: Conditioning | None = None
    sampling: Sampling = Sampling()
    guide: Model | Literal["unlabelled"] | None = None
    batch_size: int = 64
    device: torch.device = torch.device("cpu")
    compile: bool = False

    def __post_init__(self) -> None:
        if self.conditioning is None:
            found = values_of(self._backbone.conditions, "drawn", self.seeds)
            object.__setattr__(self, "conditioning", found)
        images = torch.empty(len(self.seeds), *self.shape, device="meta")
        try:
            check_conditioning(self.told, self._backbone.conditions, images)
        except ValueError as error:
            raise ValueError(f"{self.model.name}: {error}") from None
        _check_size(self.model, self.sampling)
        _check_guide(self.model, self.guide, self.sampling)
        _check_levels(self.model, self.sampling)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network works on."""
        shape = self._backbone
        return shape.img_channels, *(self.sampling.size or (shape.img_resolution,) * 2)

    @property
    def told(self) -> Conditioning:
        """What the network is told about the image of each seed."""
        assert self.conditioning is not None  # set at construction
        return self.conditioning

    @property
    def _backbone(self) -> BackboneConfig:
        return self.model.net.config.backbone

    @property
    def rows(self) -> int:
        """Images in every call of the network; the last batch is filled up to it."""
        if self.device.type == "cpu":
            return max(1, PIXELS_AT_ONCE // (self.shape[1] * self.shape[2]))
        calls = max(1, math.ceil(len(self.seeds) / self.batch_size))
        return max(1, math.ceil(len(self.seeds) / calls))

    @property
    def labels(self) -> list[int] | None:
        """Class of each seed, None for a model without classes."""
        return _classes(self.told)

    @property
    def settings(self) -> dict[str, Any]:
        """What makes the images what they are next to seeds and classes, as JSON can hold it."""
        guide = self.guide.identity if isinstance(self.guide, Model) else self.guide
        rows = {"rows": self.rows} if self.device.type == "cpu" else {}
        compiled = {"compile": True} if self.compile else {}
        return {
            "weights": self.model.identity, **({"guide": guide} if guide else {}),
            **self.sampling.changes(), **rows, **compiled,
        }  # fmt: skip

    def part(self, positions: Sequence[int]) -> Generator:
        """The same for some of the seeds."""
        seeds = [self.seeds[i] for i in positions]
        return dataclasses.replace(self, seeds=seeds, conditioning=self.told.rows(positions))

    def __len__(self) -> int:
        return math.ceil(len(self.seeds) / self.rows)

    def __iter__(self) -> Iterator[GeneratedBatch]:
        net = self._prepared(self.model)
        other = self._prepared(self.guide) if isinstance(self.guide, Model) else None
        starts = range(0, len(self.seeds), self.rows)

        def batch(begin: int) -> GeneratedBatch:
            return self._batch(net, other, slice(begin, begin + self.rows))

        if self.device.type == "cpu":
            return map_in_threads(batch, starts, torch.get_num_threads())
        return map(batch, starts)

    def _prepared(self, model: Model) -> Network:
        net = model.net.to(self.device).to(memory_format=torch.channels_last)
        if self.sampling.dtype is not None:
            net.config = dataclasses.replace(net.config, dtype=self.sampling.dtype)
        net.prepare_for_sampling(for_graph=self.compile)
        if not self.compile:
            return net
        if self.device.type == "cpu":  # a graph uses the packed weights that are there before it,
            inputs = [torch.zeros(self.rows, *self.shape)]  # best packed on one thread, as they run
            list(map_in_threads(torch.no_grad()(lambda x: net(x, 1.0)), inputs, workers=1))
        return torch.compile(net, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def _batch(self, net: Network, other: Network | None, part: slice) -> GeneratedBatch:
        seeds = list(self.seeds[part])
        conditioning = self.told.rows(part)
        empty = self.rows - len(seeds)  # filled with copies of the last image
        generators = [rng(s, 0, Purpose.GENERATION) for s in seeds + seeds[-1:] * empty]

        def noise() -> Tensor:
            return normals(generators, self.shape).to(self.device)

        told = conditioning.rows([*range(len(seeds)), *[len(seeds) - 1] * empty]).to(self.device)
        x = first_state(noise(), self.sampling.levels())
        x = self.sampling.solve(self._denoiser(net, other, told), x, noise)
        if not x.isfinite().all():
            raise ValueError(
                f"images of seeds {seeds[0]} to {seeds[-1]} came out as NaN or infinite; use weaker"
                " guidance, or a dtype of wider range (float32, or bfloat16 for float16)"
            )
        images = self.model.encoder.decode(x).cpu()[: len(seeds)]
        return GeneratedBatch(seeds, conditioning, images)

    def _denoiser(
        self, net: Network, other: Network | None, told: Conditioning
    ) -> Denoise | Stepwise:
        main, s = Conditioned(net, told), self.sampling
        if self.guide is None:
            return main
        if isinstance(self.guide, Model):
            assert other is not None
            names = self.guide.net.config.backbone.condition_names
            guide = Conditioned(other, told.only(names))
        else:
            guide = main.unconditional()
        sigma_data = self.model.net.config.sigma_data
        rescale = Rescale(share=s.rescale, sigma_data=sigma_data) if s.rescale else None
        return Guided(main, guide, s.guidance, s.interval, rescale, s.apg)


def _classes(conditioning: Conditioning) -> list[int] | None:
    label = conditioning.get("label")
    return None if label is None or label.is_floating_point() else label.tolist()


def _check_size(model: Model, sampling: Sampling) -> None:
    factor = model.net.config.backbone.size_multiple
    if sampling.size is not None and any(n < 1 or n % factor for n in sampling.size):
        height, width = sampling.size
        raise ValueError(
            f"{model.name} makes images whose sides are multiples of {factor}, got"
            f" {height} x {width}"
        )


def _check_guide(
    model: Model, guide: Model | Literal["unlabelled"] | None, sampling: Sampling
) -> None:
    own = model.net.config.backbone
    if guide is None:
        if sampling.guidance != 1:
            raise ValueError(
                f"guidance of weight {sampling.guidance:g} needs a guide: a weaker model, or"
                " 'unlabelled' for a model that was trained with label dropout"
            )
    elif isinstance(guide, Model):
        other = guide.net.config.backbone
        if guide.identity == model.identity:
            raise ValueError(
                f"the guide must be weaker than {model.name}, {guide.name} has the same weights;"
                " for the model without its classes say 'unlabelled'"
            )
        for what in ("img_channels", "img_resolution"):
            mine, its = getattr(own, what), getattr(other, what)
            if mine != its:
                raise ValueError(
                    f"the guide must work on the same images as {model.name}: {what} is {mine},"
                    f" that of {guide.name} is {its}"
                )
        if guide.encoder != model.encoder:
            raise ValueError(
                f"the guide must see images as {model.name} does, {guide.name} has another encoder"
            )
        missing = set(other.conditions) - set(own.conditions)
        if missing:
            raise ValueError(
                f"the guide must take what {model.name} takes"
                f" ({', '.join(c.describe() for c in own.conditions) or 'no condition'}) or less,"
                f" {guide.name} takes {min(c.describe() for c in missing)}"
            )
    elif not own.conditions:
        raise ValueError(
            f"{model.name} takes no condition, it cannot be its own unconditional guide"
        )


def _check_levels(model: Model, sampling: Sampling) -> None:
    reason = model.net.config.infinite_sigma_error()
    if reason is not None and sampling.levels()[0].isinf():
        raise ValueError(
            f"{model.name} cannot begin at sigma = infinity: {reason}; give a finite sigma_max"
        )
