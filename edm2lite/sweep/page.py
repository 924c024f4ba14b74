"""One page that shows a sweep: a slider along the EMA length, the curve, the same seeds' images.

It holds everything itself and works from a file.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edm2lite.atomic import replacing
from edm2lite.image_grid import channels_last, mosaic
from edm2lite.metrics.registry import MetricName, find_metric
from edm2lite.sweep.cells import AXES, Cell, Point, best, varying
from edm2lite.sweep.table import named

_LARGEST = 128
"""Largest side of an image on the page; larger images are reduced, to keep the page small."""


def write_page(
    path: Path,
    points: Sequence[Point],
    images: Mapping[Cell, NDArray[np.uint8]],
    *,
    metric: MetricName,
    verdict: str,
    protocol: str,
) -> None:
    """Write the page of the points of most images; raw weights lie left of the curve.

    Args:
        path: The file.
        points: The table.
        images: [n, C, H, W] of each cell, the same seeds in all.
        metric: Name of the metric.
        verdict: Text that says what is best.
        protocol: Text that says what was measured and how.
    """
    kind = find_metric(metric)
    num = best(points, kind.lower_is_better).num
    shown = [p for p in points if p.num == num]
    axes = varying(shown)
    values = [
        sorted({getattr(p, axis) for p in shown}, key=lambda x: (x is not None, x)) for axis in axes
    ]

    def at(point: Point) -> list[int]:
        return [v.index(getattr(point, axis)) for axis, v in zip(axes, values, strict=True)]

    data: dict[str, Any] = {
        "title": "EMA length after training",
        "metric": kind.label,
        "verdict": verdict,
        "protocol": protocol,
        "photo": any(i.shape[-1] > 32 for i in images.values()),
        "axes": [
            {"label": AXES[a], "values": v, "names": [named(a, x) for x in v]}
            for a, v in zip(axes, values, strict=True)
        ],
        "best": at(best(shown, kind.lower_is_better)),
        "points": [
            {
                "at": at(p), "value": p.value, "low": p.low, "high": p.high,
                "image": _uri(images[p.cell]) if p.cell in images else None,
            }
            for p in shown
        ],
    }  # fmt: skip
    template = files("edm2lite.sweep").joinpath("page.html").read_text(encoding="utf-8")
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    with replacing(path) as file:
        file.write(template.replace("__DATA__", text))


def _uri(images: NDArray[np.uint8]) -> str:
    """All images in one picture, as a data URI: PNG for small ones, JPEG for photographs."""
    step = math.ceil(images.shape[-1] / _LARGEST)
    if step > 1:
        side = images.shape[-1] // step
        images = np.stack([_smaller(image, side) for image in images])
    columns = 10 if len(images) % 10 == 0 else math.ceil(math.sqrt(2 * len(images)))
    picture = mosaic(list(images), min(columns, len(images)))
    buffer = io.BytesIO()
    small = images.shape[-1] <= 64
    Image.fromarray(channels_last(picture)).save(
        buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 90})
    )
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _smaller(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    planes = [
        np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BOX))
        for plane in image
    ]
    return np.stack(planes)
