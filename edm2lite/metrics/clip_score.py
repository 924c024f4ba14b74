"""CLIP score: how well images match their captions, by a CLIP of transformers."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor

from edm2lite.extras import require
from edm2lite.messages import one_line
from edm2lite.metrics.inputs import MetricInputs
from edm2lite.metrics.measurement import ImageRows, Measurement
from edm2lite.metrics.metric import ImageMetric, Metric, Needs
from edm2lite.metrics.moments import Array
from edm2lite.network.conditioning import Conditioning

_BATCH = 64  # captions at a time


class CLIPScore(ImageMetric):
    """100 times the mean cosine of the features of an image and of its caption.

    Args:
        clip: The model.
    """

    name: ClassVar[str] = "clip_score"
    label: ClassVar[str] = "CLIP score"
    lower_is_better: ClassVar[bool] = False
    needs: ClassVar[Needs] = "CLIP"

    def __init__(self, clip: CLIP):
        self.clip = clip

    @classmethod
    def create(cls, inputs: MetricInputs) -> list[Metric]:
        """See :meth:`edm2lite.metrics.Metric.create`."""
        if inputs.clip is None:
            raise ValueError("clip_score needs a CLIP, got none; give --clip, its folder")
        return [cls(CLIP(inputs.clip, inputs.device))]

    def rows(self, images: Tensor, conditioning: Conditioning) -> NDArray[Any]:
        """See :meth:`edm2lite.metrics.ImageMetric.rows`."""
        return self.clip.of_images(images)

    @property
    def row_key(self) -> dict[str, Any]:
        """See :attr:`edm2lite.metrics.ImageMetric.row_key`."""
        return {"clip": self.clip.digest}

    @property
    def protocol(self) -> dict[str, Any]:
        """See :attr:`edm2lite.metrics.Metric.protocol`."""
        return {"clip": self.clip.digest}

    def check_images(self, name: str, shape: tuple[int, ...]) -> None:
        """See :meth:`edm2lite.metrics.ImageMetric.check_images`."""
        if shape[0] not in (1, 3):
            raise ValueError(f"images for a CLIP must have 1 or 3 channels, {name} has {shape[0]}")

    def measure(self, rows: ImageRows) -> Measurement:
        """See :meth:`edm2lite.metrics.Metric.measure`."""
        captions = rows.stated_captions(self.name)
        texts = list(dict.fromkeys(captions))
        number = {text: i for i, text in enumerate(texts)}
        said = self.clip.of_texts(texts)
        shown = np.concatenate(list(rows.parts()))
        cosines = (shown * said[[number[text] for text in captions]]).sum(axis=1)
        return Measurement.of_mean(100 * cosines, rows.num_classes)


class CLIP:
    """A transformers CLIPModel with its tokenizer and image processor, from a folder.

    Nothing is downloaded, and only safetensors weights are read.

    Args:
        folder: Folder that ``save_pretrained`` of model and processor wrote.
        device: Device that computes.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If the folder does not hold a CLIP.
    """

    def __init__(self, folder: Path, device: torch.device | str = "cpu"):
        require("transformers")
        try:
            model, self._tokenizer, self._processor = _parts(folder)
        except Exception as error:  # of damaged files, transformers raises whatever it comes to
            raise ValueError(
                f"{folder} must be the folder of a transformers CLIPModel with safetensors weights,"
                f" tokenizer and image processor; loading it failed: {one_line(error, 200)}"
            ) from error
        self.folder, self.device = folder, torch.device(device)
        self._model = model.to(self.device).eval()

    @functools.cached_property
    def digest(self) -> str:
        """Hash of everything in the folder that the features depend on."""
        state = xxhash.xxh3_64()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".txt", ".model"):
                with open(path, "rb") as file:
                    while block := file.read(2**24):
                        state.update(block)
        return state.hexdigest()

    @torch.no_grad()
    def of_images(self, images: Tensor) -> Array:
        """[N, D] unit vectors of uint8 images [N, C, H, W] with C = 1 or 3."""
        colored = list(images.expand(-1, 3, -1, -1).contiguous())
        pixels = self._processor(images=colored, return_tensors="pt")["pixel_values"]
        return _unit(self._model.get_image_features(pixel_values=pixels.to(self.device)))

    @torch.no_grad()
    def of_texts(self, texts: Sequence[str]) -> Array:
        """[N, D] unit vectors of texts, cut at the length that the model takes."""
        length = self._model.config.text_config.max_position_embeddings
        parts = []
        for begin in range(0, len(texts), _BATCH):
            tokens = self._tokenizer(
                list(texts[begin : begin + _BATCH]),
                padding=True, truncation=True, max_length=length, return_tensors="pt",
            )  # fmt: skip
            kept = {k: v.to(self.device) for k, v in tokens.items() if k != "token_type_ids"}
            parts.append(_unit(self._model.get_text_features(**kept)))
        return np.concatenate(parts)


def _parts(folder: Path) -> tuple[Any, Any, Any]:
    """Model, tokenizer and image processor."""
    import transformers

    if not (folder / "config.json").is_file():
        raise ValueError("it has no config.json")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = transformers.AutoConfig.from_pretrained(folder, **options)
    if not isinstance(config, transformers.CLIPConfig):
        raise ValueError(f"it is a {type(config).__name__.removesuffix('Config')}")
    model, report = transformers.CLIPModel.from_pretrained(
        folder, **options, use_safetensors=True, dtype=torch.float32, output_loading_info=True
    )
    if report["missing_keys"]:
        raise ValueError(f"its weights have no {min(report['missing_keys'])}")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
    return model, tokenizer, transformers.AutoImageProcessor.from_pretrained(folder, **options)


def _unit(output: Any) -> Array:
    """Features, or what transformers 5 returns with them, as unit vectors in float64."""
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    wide = features.double().cpu()
    return torch.nn.functional.normalize(wide, dim=1).numpy()
