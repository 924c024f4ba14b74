"""One person playing with one model: what can be chosen, the images of a choice, and where it lies.

Nothing here knows of a page. Errors that the person can mend are ValueError, FileNotFoundError and
ImportError, in one line.
"""

from __future__ import annotations

import dataclasses
import shlex
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from edm2lite import processes
from edm2lite.ema import Reconstruction
from edm2lite.ema.folder import snapshot_folder
from edm2lite.models.adapters import Adapter, adapter_of
from edm2lite.models.loading import Model, from_reconstruction, load, load_adapter, with_adapters
from edm2lite.models.strengths import parse_strength
from edm2lite.network.conditions import ConditionImage
from edm2lite.play.averages import Averages
from edm2lite.play.settings import EARLIER, UNCONDITIONAL, Fields, Settings
from edm2lite.sampling.generation import generate
from edm2lite.sampling.image_set import Images
from edm2lite.sampling.settings import Sampling
from edm2lite.sweep.curve import Curve, swept_curve
from edm2lite.units import format_percent

LARGEST_SEED = 2**31


@dataclass(frozen=True)
class Drawing:
    """Images of a choice, and what there is to know of them.

    Attributes:
        images: The images.
        words: The average, its predicted error and the time that it took, in one line.
        command: The command that draws the same images.
    """

    images: Images
    words: str
    command: str


class Session:
    """A model that is played with: a run with all its averages, or a single model.

    Args:
        source: A run, finished or not; or the name of a model, as :func:`edm2lite.load` takes it.
        adapters: Adapters of the model, each with a strength as in ``FILE:0.5``.
        sweep: Folder with a sweep of the run. [default: the run]
        device: Device that computes. [default: the GPU of this process, else the CPU]

    Raises:
        FileNotFoundError: If there is no such run, model or sweep.
        ValueError: If it is damaged, or holds no model of ours.
    """

    def __init__(
        self,
        source: str | Path,
        adapters: Sequence[str] = (),
        *,
        sweep: str | Path | None = None,
        device: torch.device | str | None = None,
    ):
        self.source, self._lock = str(source), threading.Lock()
        self._device = processes.device() if device is None else torch.device(device)
        self._sweep = Path(self.source if sweep is None else sweep)
        if sweep is not None and not (self._sweep / "sweep.csv").is_file():
            raise FileNotFoundError(
                f"no sweep.csv in {sweep}; give the folder that a sweep was written to"
            )
        self.averages = Averages(source) if _has_snapshots(Path(source)) else None
        parsed = [parse_strength(text) for text in adapters]
        self._adapters = [load_adapter(name) for name, _ in parsed]
        self._names = [name for name, _ in parsed]
        self.strengths = tuple(strength for _, strength in parsed)
        self._own_base = ""
        if self.averages is None:
            self._model = first = load(self.source)
        else:
            first = self._first(self.averages)
        if self._own_base:
            self._names, self.strengths = [self.source, *self._names], (1.0, *self.strengths)
        has_earlier = self.averages is not None and len(self.averages.times) > 1
        model = with_adapters(first, self._pairs(self.strengths))
        self.fields = Fields.of(model, self._names, has_earlier=has_earlier)

    def settings(self) -> Settings:
        """A choice to begin with: the best length of the sweep, or else 10 %."""
        plain = Settings(strengths=self.strengths, controls=(None,) * len(self.fields.controls))
        if self.averages is None:
            return plain
        possible, curve = self.averages.lengths(), self.swept()
        wanted = 0.10 if curve is None or curve.best is None else curve.lengths[curve.best]
        nearest = min(possible, key=lambda s: abs(s - wanted), default=wanted)
        return dataclasses.replace(plain, sigma_rel=nearest)

    def refresh(self) -> bool:
        """Take in snapshots that were saved since; whether there were any."""
        if self.averages is None:
            return False
        return self.averages.refresh()

    def swept(self, nimg: int | None = None) -> Curve | None:
        """The curve of the sweep at a training time, if there was one.

        Args:
            nimg: Training time. [default: the latest snapshot]
        """
        if self.averages is None:
            return None
        return swept_curve(self._sweep, self.averages.times[-1] if nimg is None else nimg)

    def curve(self, nimg: int | None = None) -> Curve | None:
        """The curve on which a length has its place: of the sweep, or else of predicted errors.

        Args:
            nimg: Training time. [default: the latest snapshot]
        """
        if self.averages is None:
            return None
        found = self.swept(nimg)
        if found is not None:
            return found
        plans = self.averages.plans(nimg)
        errors = tuple(plan.predicted_error for plan in plans.values())
        return Curve(tuple(plans), errors, name="predicted error of the weights")

    def place_words(self, sigma_rel: float, nimg: int | None = None) -> str:
        """What is known of a length before it is rebuilt: its predicted error, and its value.

        Args:
            sigma_rel: Relative width.
            nimg: Training time. [default: the latest snapshot]

        Raises:
            ValueError: If the predicted error is above 0.02.
        """
        if self.averages is None:
            return ""
        plan = self.averages.plan(sigma_rel, nimg)
        words = f"{format_percent(sigma_rel)}: predicted error {plan.predicted_error:.1e}"
        swept = self.swept(nimg)
        value = None if swept is None else swept.at(sigma_rel)
        if swept is not None and value is not None:
            words += f"; {swept.name} about {value:.4g} by the sweep"
        return words

    def draw(self, settings: Settings) -> Drawing:
        """The images of a choice; one call at a time computes, others wait.

        Args:
            settings: The choice.

        Raises:
            ValueError: If an average cannot be rebuilt accurately, or the model does not take what
                was chosen.
        """
        with self._lock:
            begin = time.perf_counter()
            model, plan = self._chosen(settings, settings.nimg)
            rebuilt = time.perf_counter()
            guide, guide_name = self._guide(settings)
            sampling = Sampling(
                num_steps=settings.num_steps, guidance=settings.guidance if guide else 1.0
            )
            if not 0 <= settings.seed <= LARGEST_SEED:
                raise ValueError(f"seeds must be from 0 to {LARGEST_SEED}, got {settings.seed}")
            prompts = [text for text in settings.prompts if text.strip()]
            images = generate(
                model,
                range(settings.seed, settings.seed + settings.num),
                prompts=prompts or None,
                negative_prompt=settings.negative_prompt if guide == UNCONDITIONAL else "",
                classes=settings.classes or None,
                sampling=sampling,
                guide=guide,
                controls=self._controls(model, settings.controls),
                device=self._device,
            )
            drawn = time.perf_counter()
        words = f"rebuilt in {rebuilt - begin:.2f} s, drawn in {drawn - rebuilt:.1f} s"
        if plan is not None and self.averages is not None:
            words = (
                f"{settings.model_name(self.source)} at {plan.nimg:,} {self.averages.clock}:"
                f" predicted error {plan.predicted_error:.1e}, of {len(plan.inputs)} snapshots,"
                f" {words}"
            )
        return Drawing(images, words, self._command(settings, guide_name))

    def _command(self, settings: Settings, guide: str) -> str:
        """The command that draws the same images, but for control images, which are files there."""
        pairs = list(zip(self._names, settings.strengths or self.strengths, strict=True))
        words = [settings.model_name(self.source)]
        if self._own_base and pairs[0][1] != 1:
            words = [self._own_base, "--adapter", f"{words[0]}:{pairs[0][1]:g}"]
        for name, strength in pairs[1:] if self._own_base else pairs:
            words += ["--adapter", f"{name}:{strength:g}"]
        return shlex.join(["edm2lite", "generate", *words, *settings.options(guide)])

    def _first(self, averages: Averages) -> Model:
        """A model of the run, to see what it takes."""
        plans = averages.plans()
        length = min(plans, key=lambda s: plans[s].predicted_error)
        return self._assembled(averages.build(length), (1.0,))

    def _chosen(self, settings: Settings, nimg: int | None) -> tuple[Model, Reconstruction | None]:
        """The model of a choice at a training time, with its adapters, and its plan."""
        if self.averages is None:
            return with_adapters(self._model, self._pairs(settings.strengths)), None
        if settings.sigma_rel is None:
            raise ValueError(f"{self.source} is a run and needs an EMA length; choose one")
        result = self.averages.build(settings.sigma_rel, nimg)
        model = self._assembled(result, settings.strengths or self.strengths)
        return with_adapters(model, self._pairs(settings.strengths)), result

    def _pairs(self, strengths: Sequence[float]) -> list[tuple[Adapter, float]]:
        given = strengths or self.strengths
        last = given[len(given) - len(self._adapters) :]
        return list(zip(self._adapters, last, strict=True))

    def _assembled(self, result: Reconstruction, strengths: Sequence[float]) -> Model:
        name = f"{self.source}@sigma_rel={result.sigma_rel:g},nimg={result.nimg}"
        if "adapter" not in result.metadata:
            return from_reconstruction(result, name)
        own = adapter_of(result.state_dict or {}, result.metadata, name)
        if own.base != self._own_base:
            self._base, self._own_base = load(own.base), own.base
        return with_adapters(self._base, [(own, strengths[0])])

    def _guide(self, settings: Settings) -> tuple[Model | str | None, str]:
        """The guide of a choice, and its name as commands take it; None and "" for no guidance."""
        if settings.guidance == 1 or not settings.guide:
            return None, ""
        if settings.guide != EARLIER or self.averages is None:
            return settings.guide, settings.guide
        times = self.averages.times
        end = times[-1] if settings.nimg is None else settings.nimg
        before = [t for t in times if t < end]
        if not before:
            raise ValueError(f"a guide needs a snapshot before {end:,}; choose a later time")
        nimg = min(before, key=lambda t: abs(t - end / 4))
        model, _ = self._chosen(settings, nimg)
        return model, dataclasses.replace(settings, nimg=nimg).model_name(self.source)

    def _controls(self, model: Model, given: Sequence[NDArray[np.uint8] | None]) -> list[Tensor]:
        """The images that a network follows, at the size and with the channels that it takes."""
        taken = [c for c in model.net.config.backbone.conditions if isinstance(c, ConditionImage)]
        found = []
        for k, condition in enumerate(taken):
            pixels = given[k] if k < len(given) else None
            if pixels is None:
                raise ValueError(f"{model.name} follows an image ({condition.name}); give one")
            side = model.net.config.backbone.img_resolution
            picture = Image.fromarray(pixels).convert("L" if condition.channels == 1 else "RGB")
            fitted = np.array(picture.resize((side, side), Image.Resampling.LANCZOS))
            fitted = fitted[None] if fitted.ndim == 2 else fitted.transpose(2, 0, 1)
            found.append(torch.from_numpy(np.ascontiguousarray(fitted))[None])
        return found


def _has_snapshots(source: Path) -> bool:
    folder = snapshot_folder(source)
    return folder.is_dir() and (folder != source or any(source.glob("ema-*.safetensors")))
