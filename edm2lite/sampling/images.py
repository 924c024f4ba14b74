"""Images for given seeds, in batches: an iterable with a length.

An image depends on its seed, its conditions and the :class:`Sampling` alone. On a CPU that holds to
the last bit. There the kernels that torch picks depend on the shapes that they see and on the
number of threads, and so does rounding; images are therefore computed in batches of one size that
depends on the network alone, the last one filled up, each by one thread. On a GPU every batch of a
command has the same size too, so that kernels are chosen and compiled once, and an image does not
depend on how many are left. Rounding may differ there all the same: cuDNN may choose other
algorithms in another process, and more seeds may make the batches of a command larger. On a GPU the
next batch is launched before the last one is fetched.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edm2lite.diffusion.variance import WithVariance, predicts_variance
from edm2lite.dtypes import Dtype
from edm2lite.models.loading import Model
from edm2lite.network.backbone import BackboneConfig
from edm2lite.network.conditioning import Conditioning
from edm2lite.network.told import check_conditioning, examples
from edm2lite.sampling.compatibility import Guide, check_sampling
from edm2lite.sampling.conditions import class_indices, conditions_of_seeds
from edm2lite.sampling.edit import Edit
from edm2lite.sampling.guidance import Conditioned, Guided, Network, Rescale
from edm2lite.sampling.launched import (
    GeneratedBatch,
    Launched,
    on_its_way,
    one_ahead,
    tuned_convolutions,
)
from edm2lite.sampling.levels import first_state
from edm2lite.sampling.prompts import text_conditions, text_encoder_of, with_prompts
from edm2lite.sampling.settings import Sampling
from edm2lite.sampling.solvers import Denoise, Stepwise
from edm2lite.seeding import Purpose, normals, rng
from edm2lite.threads import map_in_threads

PIXELS_AT_ONCE = 4096
"""Number of pixels, over all images, in one call on a CPU: 64 images of 8x8, one of 64x64. Larger
calls are hardly faster there (docs/sampling.md), and more of the last one would be wasted."""

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class ImageGenerator:
    """Iterates over batches of generated images; ``len`` is the number of batches.

    Attributes:
        model: The model that generates.
        seeds: Seeds of the images, each at least 0.
        conditioning: What the network is told, one row per seed; None draws what can be drawn
            (classes) from the seeds.
        sampling: Sampler settings.
        guide: Denoiser to guide away from: another model, or ``"unconditional"`` for ``model``
            without its conditions, which it must have seen so in training (label dropout).
        batch_size: Number of images at a time on a GPU, where fewer are filled up to it; a CPU has
            its own number, see the module.
        device: Device that computes.
        compiled: Whether torch.compile makes kernels for the networks first.
        prompts: Prompt of each seed, for a model that is told text; an empty one tells it nothing.
            None for no prompts.
        negative_prompt: What an unconditional guide is told in words, in place of nothing.
        edit: Images to begin with, and the part of them that is made; None to begin with noise.

    Raises:
        ValueError: If conditions, prompts or guide do not fit the model, or it cannot take the
            noise levels.

    Example:
        >>> from edm2lite.diffusion.precond import Precond, PrecondConfig
        >>> from edm2lite.models import PixelEncoder
        >>> from edm2lite.network.unet import UNetConfig
        >>> unet = UNetConfig(img_resolution=8, img_channels=1, model_channels=8, channel_mult=(1,),
        ...                   num_blocks=1, attn_resolutions=(), head_channels=8)
        >>> model = Model("tiny", Precond(PrecondConfig(backbone=unet)), PixelEncoder(), {})
        >>> for batch in ImageGenerator(model, range(3), sampling=Sampling(num_steps=2)):
        ...     print(batch.seeds, batch.images.shape)
        [0, 1, 2] torch.Size([3, 1, 8, 8])
    """

    model: Model
    seeds: Sequence[int]
    conditioning: Conditioning | None = None
    sampling: Sampling = field(default_factory=Sampling)
    guide: Guide = None
    batch_size: int = 64
    device: torch.device = _CPU
    compiled: bool = False
    prompts: Sequence[str] | None = None
    negative_prompt: str = ""
    edit: Edit | None = None

    def __post_init__(self) -> None:
        if self.conditioning is None:
            found = conditions_of_seeds(self.model, self.seeds)
            object.__setattr__(self, "conditioning", found)
        images = torch.empty(len(self.seeds), *self.shape, device="meta")
        try:
            check_conditioning(self.seed_conditioning, self._backbone.conditions, images)
        except ValueError as error:
            raise ValueError(f"{self.model.name}: {error}") from None
        if self.prompts is None and {*text_conditions(self.model)} - {*self.seed_conditioning}:
            object.__setattr__(self, "prompts", [""] * len(self.seeds))
        if self.prompts is not None or self.negative_prompt:
            encoder = text_encoder_of(self.model)
            if any([*(self.prompts or ()), self.negative_prompt]):
                encoder.opened()  # before anything is generated
        check_sampling(self.model, self.guide, self.sampling, self.negative_prompt)
        if self.edit is not None:
            self.edit.check(self.model.encoder, self.sampling, self.shape)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the network works on."""
        shape = self._backbone
        return shape.img_channels, *(self.sampling.size or (shape.img_resolution,) * 2)

    @property
    def seed_conditioning(self) -> Conditioning:
        """What the network is told about the image of each seed."""
        assert self.conditioning is not None  # set at construction
        return self.conditioning

    @property
    def _backbone(self) -> BackboneConfig:
        return self.model.net.config.backbone

    @property
    def rows(self) -> int:
        """Number of images in every call of the network; the last batch is filled up to it."""
        if self.device.type == "cpu":
            return max(1, PIXELS_AT_ONCE // (self.shape[1] * self.shape[2]))
        return self.batch_size

    @property
    def labels(self) -> list[int] | None:
        """Class of each seed, None for a model without classes."""
        return class_indices(self.seed_conditioning)

    @property
    def settings(self) -> dict[str, Any]:
        """Everything besides seeds and conditions that decides the images, as JSON can hold it."""
        guide = self.guide.identity if isinstance(self.guide, Model) else self.guide
        rows = {"rows": self.rows} if self.device.type == "cpu" else {}
        changes = {k: v for k, v in self.sampling.changes().items() if k != "decoder_dtype"}
        dtype = self._decoder_dtype if self.model.encoder.has_network else "float32"
        decoder = {} if dtype == "float32" else {"decoder_dtype": dtype}
        compiled = {"compile": True} if self.compiled else {}
        negative = {"negative_prompt": self.negative_prompt} if self.negative_prompt else {}
        return {
            "weights": self.model.identity, **({"guide": guide} if guide else {}),
            **changes, **rows, **compiled, **negative, **decoder,
            **({} if self.edit is None else self.edit.settings),
        }  # fmt: skip

    @property
    def _decoder_dtype(self) -> Dtype:
        return self.sampling.decoder_dtype_on(self.device)

    @property
    def earlier_settings(self) -> dict[str, Any]:
        """The values of settings by which earlier versions told the same images."""
        guide = self.guide.earlier_identity if isinstance(self.guide, Model) else self.guide
        return {"weights": self.model.earlier_identity, **({"guide": guide} if guide else {})}

    def part(self, positions: Sequence[int]) -> ImageGenerator:
        """A generator of some of the images, by their positions in :attr:`seeds`."""
        seeds = [self.seeds[i] for i in positions]
        told = self.seed_conditioning.rows(positions)
        prompts = None if self.prompts is None else [self.prompts[i] for i in positions]
        return dataclasses.replace(self, seeds=seeds, conditioning=told, prompts=prompts)

    def __len__(self) -> int:
        return math.ceil(len(self.seeds) / self.rows)

    def __iter__(self) -> Iterator[GeneratedBatch]:
        net = self._prepared(self.model)
        other = self._prepared(self.guide) if isinstance(self.guide, Model) else None
        starts = range(0, len(self.seeds), self.rows)

        def launched(begin: int) -> Launched:
            return self._launched(net, other, slice(begin, begin + self.rows))

        if self.device.type == "cpu":
            workers = torch.get_num_threads()
            return map_in_threads(lambda begin: self._fetched(launched(begin)), starts, workers)
        return one_ahead(launched, self._fetched, starts)

    def _prepared(self, model: Model) -> Network:
        """A copy of the network for sampling; the model stays as it is."""
        net = model.net.prepared(
            dtype=self.sampling.dtype, device=self.device, compiled=self.compiled
        )
        if self.sampling.control_weights == "resolution":
            for control in getattr(net.backbone, "controls", {}).values():
                control.weigh_by_resolution_()
        if not self.compiled:
            return net
        if self.device.type == "cpu":  # a graph uses the packed weights that are there before it,
            x = torch.zeros(self.rows, *self.shape)  # best packed on one thread, as they run
            told = examples(net.config.backbone.conditions, self.rows, *self.shape[1:])
            list(map_in_threads(torch.no_grad()(lambda x: net(x, 1.0, told)), [x], workers=1))
        return torch.compile(net, fullgraph=True, dynamic=False)

    @torch.no_grad()
    def _launched(self, net: Network, other: Network | None, part: slice) -> Launched:
        seeds = list(self.seeds[part])
        conditioning = self.seed_conditioning.rows(part)
        if self.prompts is not None:
            conditioning = with_prompts(self.model, conditioning, self.prompts[part])
        empty = self.rows - len(seeds)  # filled with copies of the last image
        every = seeds + seeds[-1:] * empty
        generators = [rng(s, 0, Purpose.GENERATION) for s in every]

        def noise() -> Tensor:
            return on_its_way(normals(generators, self.shape), self.device)

        filled = conditioning.rows([*range(len(seeds)), *[len(seeds) - 1] * empty])
        told = {name: on_its_way(value, self.device) for name, value in filled.values.items()}
        with tuned_convolutions(self.device):
            denoise = self._denoiser(net, other, Conditioning(told))
            if self.edit is None:
                x = first_state(noise(), self.sampling.levels())
                x = self.sampling.solve(denoise, x, noise)
            else:
                x = self.edit.solve(every, self.model.encoder, self.sampling, denoise, noise)
            decoded = self.model.encoder.decode_in(x, self._decoder_dtype)
            return Launched(seeds, conditioning, x, *decoded)

    def _fetched(self, launched: Launched) -> GeneratedBatch:
        batch = launched.batch()
        if self.edit is None:
            return batch
        images = self.edit.finished(batch.seeds, batch.images)
        return dataclasses.replace(batch, images=images)

    def _unguided(self, conditioning: Conditioning) -> Conditioning:
        """What an unconditional guide is told: nothing, but for images that it follows too."""
        told = conditioning.unconditional()
        if self.sampling.control_guidance == "main":
            return told
        controls = getattr(self._backbone, "controls", None) or ()
        kept = conditioning.only([control.name for control in controls])
        return Conditioning({**told.values, **kept.values})

    def _denoiser(
        self, net: Network, other: Network | None, conditioning: Conditioning
    ) -> Denoise | Stepwise:
        s = self.sampling
        if s.takes_variance and predicts_variance(net):
            net = WithVariance(net)
        main = Conditioned(net, conditioning)
        if self.guide is None:
            return main
        if isinstance(self.guide, Model):
            assert other is not None
            names = self.guide.net.config.backbone.condition_names
            guide = Conditioned(other, conditioning.only(names))
        else:
            guide = Conditioned(net, self._unguided(conditioning))
            if self.negative_prompt:
                texts = [self.negative_prompt] * self.rows
                told = with_prompts(self.model, guide.conditioning, texts)
                guide = Conditioned(net, told.to(self.device))
        sigma_data = self.model.net.config.sigma_data
        rescale = Rescale(share=s.rescale, sigma_data=sigma_data) if s.rescale else None
        return Guided(main, guide, s.guidance, s.interval, rescale, s.apg, s.guided_channels)
