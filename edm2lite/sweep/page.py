"""One page that shows a sweep: a slider along the EMA length, the curve, the same seeds' images.

It holds everything itself, works from a file, and asks nothing of a network.
"""

from __future__ import annotations

import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from edm2lite.atomic import replacing
from edm2lite.image_grid import channels_last, mosaic
from edm2lite.metrics.interval import Verdict
from edm2lite.metrics.registry import MetricName, find_metric
from edm2lite.strict_json import parse_object
from edm2lite.sweep.cells import AXES, Cell, Point, best, varying
from edm2lite.sweep.table import named

_LARGEST = 128
"""Largest side of an image on the page; larger images are reduced, to keep the page small."""

_SHORT = 8
"""Largest number of letters of a name above a column."""

_ROWS = 16
"""Largest number of classes or prompts that get a row of images each."""


@dataclass(frozen=True, kw_only=True)
class PageTexts:
    """What the page says in words.

    Attributes:
        verdict: What is best.
        protocol: What was measured and how.
        run: Name of the run.
        run_id: Identifier of the run, as model files state it.
        command: The command of the sweep, or "".
        commands: The command that makes images, by cell.
        titles: Class or caption of each of the images that are shown; empty if not known.
    """

    verdict: str
    protocol: str
    run: str = ""
    run_id: str = ""
    command: str = ""
    commands: Mapping[Cell, str] = field(default_factory=dict)
    titles: Sequence[str] = ()


def write_page(
    path: Path,
    points: Sequence[Point],
    images: Mapping[Cell, NDArray[np.uint8]],
    *,
    metric: MetricName,
    texts: PageTexts,
    equal: Sequence[Point] | None = None,
    optimum: Verdict | None = None,
    first_seed: int = 0,
) -> None:
    """Write the page of the points of most images; raw weights lie left of the curve.

    Args:
        path: The file.
        points: The table.
        images: [n, C, H, W] of each cell, the same seeds in all.
        metric: Name of the metric.
        texts: What the page says.
        equal: Points that cannot be told apart from the best one, None if that is not known.
        optimum: Place of the best length, for a curve over lengths.
        first_seed: Seed of the first image.
    """
    kind = find_metric(metric)
    num = best(points, kind.lower_is_better).num
    shown = [p for p in points if p.num == num]
    axes = varying(shown)
    values = [_values(shown, axis) for axis in axes]
    alike = {point.cell for point in equal or ()}
    order, tiles = _tiles(texts.titles, min((len(i) for i in images.values()), default=0))

    pictures = {cell: _picture(i[order], tiles["columns"]) for cell, i in images.items()}

    def at(point: Point) -> list[int]:
        return [v.index(getattr(point, axis)) for axis, v in zip(axes, values, strict=True)]

    data: dict[str, Any] = {
        "title": "EMA length after training" if axes[0] == "sigma_rel" else "Decay after training",
        "metric": kind.label,
        "axis": kind.axis_label,
        "lower": kind.lower_is_better,
        "verdict": texts.verdict,
        "protocol": texts.protocol,
        "run": texts.run,
        "id": texts.run_id,
        "command": texts.command,
        "photo": any(i.shape[-1] > 32 for i in images.values()),
        "axes": [
            {"label": AXES[a], "values": v, "names": [named(a, x) for x in v]}
            for a, v in zip(axes, values, strict=True)
        ],
        "raw": shown[0].is_raw,
        "best": at(best(shown, kind.lower_is_better)),
        "optimum": _place(optimum),
        "tiles": {**tiles, "seeds": [first_seed + i for i in order]},
        "points": [
            {
                "at": at(p), "cell": p.cell.settings,
                "value": p.value, "low": p.low, "high": p.high,
                "alike": p.cell in alike, "command": texts.commands.get(p.cell, ""),
                **pictures.get(p.cell, {"image": None}),
            }
            for p in shown
        ],
    }  # fmt: skip
    template = files("edm2lite.sweep").joinpath("page.html").read_text(encoding="utf-8")
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    with replacing(path) as file:
        file.write(template.replace("__DATA__", text))


def read_page(path: Path) -> dict[str, Any]:
    """What a page shows, as :func:`write_page` put it there; empty for any other page.

    Args:
        path: The file.

    Raises:
        ValueError: If the page was altered so that it cannot be read.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "sweep.html"
        >>> texts = PageTexts(verdict="", protocol="300 images", run_id="a1b2")
        >>> write_page(path, [Point(0.1, 64, value=2.5)], {}, metric="fd", texts=texts)
        >>> page = read_page(path)
        >>> page["id"], page["points"][0]["cell"]["sigma_rel"]
        ('a1b2', 0.1)
    """
    text = path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    try:
        return parse_object(found[1]) if found else {}
    except ValueError as error:
        raise ValueError(
            f"{path} must be the page of a sweep, but {error}; make it again"
        ) from error


def _values(points: Sequence[Point], axis: str) -> list[Any]:
    """Places along an axis: raw weights first, lengths ascending, decays as they came."""
    found = dict.fromkeys(getattr(point, axis) for point in points)
    if axis == "decay":
        return sorted(found, key=bool)
    return sorted(found, key=lambda x: (x is not None, x))


def _place(optimum: Verdict | None) -> list[float] | None:
    """Interval of the place of the best length, None if there is none."""
    if optimum is None or optimum.low is None or optimum.high is None:
        return None
    return [optimum.low, optimum.high]


def _tiles(titles: Sequence[str], num: int) -> tuple[list[int], dict[str, Any]]:
    """Order of the images on the page, the number of columns, and names of rows or columns.

    A few classes get a row each, or a column if there are more classes than images of each.
    """
    titles = titles if len(titles) >= num else ()
    order = list(range(num))
    groups = {title: [i for i in order if titles[i] == title] for title in titles[:num]}
    size = min((len(group) for group in groups.values()), default=0)
    side = 10 if num % 10 == 0 else math.ceil(math.sqrt(2 * max(1, num)))
    tiles: dict[str, Any] = {"columns": min(side, max(1, num)), "rows": [], "heads": []}
    if 2 <= len(groups) <= _ROWS and size > 1:
        names = [title.removeprefix("class ") for title in groups]
        if size >= len(groups) or max(map(len, names)) > _SHORT:
            order = [i for group in groups.values() for i in group[:size]]
            tiles.update(columns=size, rows=list(groups))
        else:
            order = [group[i] for i in range(size) for group in groups.values()]
            tiles.update(columns=len(groups), heads=names)
    return order, {**tiles, "titles": [titles[i] for i in order] if titles else []}


def _picture(images: NDArray[np.uint8], columns: int) -> dict[str, Any]:
    """All images in one picture: a data URI, PNG for small ones, JPEG for photographs; its size."""
    step = math.ceil(images.shape[-1] / _LARGEST)
    if step > 1:
        side = images.shape[-1] // step
        images = np.stack([_smaller(image, side) for image in images])
    picture = mosaic(list(images), columns)
    buffer = io.BytesIO()
    small = images.shape[-1] <= 64
    Image.fromarray(channels_last(picture)).save(
        buffer, **({"format": "PNG"} if small else {"format": "JPEG", "quality": 90})
    )
    kind = "png" if small else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"image": uri, "size": [picture.shape[2], picture.shape[1]]}


def _smaller(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    planes = [
        np.asarray(Image.fromarray(plane).resize((side, side), Image.Resampling.BOX))
        for plane in image
    ]
    return np.stack(planes)
