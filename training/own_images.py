"""Pictures of one's own as training data: found, converted once, and described in a sentence.

A data set that was converted before is used where it lies. Anything else (a folder with a folder
per class, a ZIP, a list) becomes ``RUN/dataset.zip``: squares of one size, classes by the names of
folders, white behind transparent parts. ``RUN/dataset-source.json`` says of what it was made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from edm2lite.atomic import replacing
from edm2lite.dataset import Conversion, ImageDataset, convert_images, open_collection, open_dataset
from edm2lite.dataset.collection import ImageCollection
from edm2lite.dataset.files import open_files
from edm2lite.dataset.opening import FUNCTION, is_builtin
from edm2lite.dataset.shards import INDEX
from edm2lite.dataset.table import TABLE
from edm2lite.messages import one_line
from edm2lite.strict_json import parse_object
from edm2lite.sweep.defaults import CONVERTED

ORIGIN = "dataset-source.json"
"""Name of the file beside them that says of what they were made."""

SIDES = (16, 32, 64)
"""Sides in pixels among which one is chosen, if none is asked for."""

MULTIPLE = 4
"""Number that a side must be a multiple of: networks of the presets halve it twice."""

FEWEST = 16
"""Number of pictures below which there is nothing to learn."""

_LOOKED_AT = 64
_NAMED = 3


class OwnImages(NamedTuple):
    """Training data, and what was done to make it.

    Attributes:
        dataset: The pictures, of one square size.
        source: Name of the data set for ``data.source``.
        done: What was done, in words that continue "PHOTOS: 700 images".
    """

    dataset: ImageDataset
    source: str
    done: str


def own_images(
    data: str,
    run_dir: Path,
    largest: int,
    resolution: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> OwnImages:
    """The pictures that a person names, as training data of one square size.

    Args:
        data: Folder, ZIP, list or name, as ``edm2lite dataset convert`` takes it.
        run_dir: Folder of the run, where converted pictures go.
        largest: Largest side in pixels to choose.
        resolution: Side in pixels. [default: chosen by the sizes of the pictures]
        progress: Function that is called with the number of pictures converted, and of all.

    Raises:
        FileNotFoundError: If there is nothing of that name.
        ValueError: If it holds no pictures, too few, or latents; the side cannot be halved twice;
            or the folder has pictures of another source.
    """
    if resolution is not None and (resolution < 8 or resolution % MULTIPLE):
        near = max(8, round(resolution / MULTIPLE) * MULTIPLE)
        raise ValueError(
            f"--resolution must be a multiple of {MULTIPLE} and at least 8, got {resolution}; the"
            f" nearest is {near}"
        )
    found = _as_it_is(data, resolution)
    if found is not None:
        return OwnImages(_enough(found), data, "used as they are")
    converted = run_dir / CONVERTED
    if not converted.exists():
        done = _convert(data, run_dir, largest, resolution, progress)
    else:
        check_origin(run_dir, data, resolution)
        done = f"converted before, in {converted}"
    return OwnImages(_enough(open_dataset(converted)), str(converted), done)


def _as_it_is(data: str, resolution: int | None) -> ImageDataset | None:
    """A data set that needs no conversion, None for pictures that do."""
    path = Path(data)
    if not path.exists() or is_builtin(data):
        is_ready = is_builtin(data) or bool(FUNCTION.fullmatch(data))
        if not is_ready:
            raise FileNotFoundError(
                f"--data must name pictures, there is nothing at {data}; give a folder (the folders"
                " in it are the classes), or a ZIP of images"
            )
    else:
        is_ready = (path / INDEX).is_file() or _has_table(path)
    if not is_ready:
        return None
    dataset = open_dataset(data)
    if dataset.encoder is not None:
        raise ValueError(
            f"--data must hold pictures, {data} holds latents; train on them with a configuration,"
            f" as in edm2lite train CONFIG --set data.source={data}"
        )
    sizes = {tuple(size) for size in dataset.all_sizes().tolist()}
    (height, width), *others = sizes
    fits = not others and height == width and height % MULTIPLE == 0
    return dataset if fits and resolution in (None, height) else None


def _has_table(path: Path) -> bool:
    is_list = path.suffix.lower() in (".csv", ".jsonl")
    return not is_list and TABLE in open_files(path).names


def _enough(dataset: ImageDataset) -> ImageDataset:
    _check_number(dataset.name, len(dataset))
    return dataset


def _check_number(name: str, num: int) -> None:
    if num < FEWEST:
        raise ValueError(f"--data must hold at least {FEWEST} pictures, {name} has {num}")


def _convert(
    data: str,
    run_dir: Path,
    largest: int,
    resolution: int | None,
    progress: Callable[[int, int], None],
) -> str:
    """Write the converted pictures, and say what was done."""
    collection, clear = _watched(open_collection(data, conditions=False))
    _check_number(data, len(collection.names))
    side = resolution or _side(collection, largest)
    clear.clear()  # those that were looked at are looked at again
    run_dir.mkdir(parents=True, exist_ok=True)
    with replacing(run_dir / ORIGIN) as file:  # first: pictures never lie here without their origin
        json.dump({"source": str(Path(data).resolve()), "resolution": side}, file)
    report = convert_images(
        collection,
        run_dir / CONVERTED,
        Conversion(resolution=side, skip_damaged=True),
        os.cpu_count() or 1,
        progress,
    )
    parts = [f"converted to {side} x {side} in {run_dir / CONVERTED}"]
    kept = sum(report.kept) / len(report.kept)
    if kept < 0.999:
        parts.append(f"cropped to squares ({kept:.0%} of the area is left)")
    if clear:
        parts.append(f"{len(clear)} of them transparent, on white now")
    if report.damaged:
        more = ", ..." if len(report.damaged) > _NAMED else ""
        named = "; ".join(one_line(damage, 200) for damage in report.damaged[:_NAMED])
        parts.append(f"{len(report.damaged)} left out that cannot be read ({named}{more})")
    return ", ".join(parts)


def _watched(collection: ImageCollection) -> tuple[ImageCollection, set[int]]:
    """The pictures, and a set that collects those with transparency as they are loaded."""
    clear: set[int] = set()

    def load(index: int) -> Image.Image:
        image = collection.load(index)
        if image.has_transparency_data:
            clear.add(index)
        return image

    return dataclasses.replace(collection, load=load), clear


def _side(collection: ImageCollection, largest: int) -> int:
    """The largest side that does not enlarge most pictures by much, of a few that are looked at."""
    num = len(collection.names)
    rows = sorted({i * num // _LOOKED_AT for i in range(_LOOKED_AT)})
    sizes = []
    for row in rows:
        try:
            sizes.append(min(collection.load(row).size))
        except (ValueError, OSError):
            continue  # the conversion says which cannot be read
    typical = statistics.median(sizes) if sizes else largest
    fitting = [side for side in SIDES if side <= largest and typical >= 0.75 * side]
    return max(fitting, default=SIDES[0])


def check_origin(run_dir: Path, data: str, resolution: int | None) -> None:
    """See that the converted pictures of a run are those that a person names.

    Args:
        run_dir: Folder of the run.
        data: Pictures, as they are named now.
        resolution: Side in pixels that is asked for now, or None.

    Raises:
        ValueError: If they were made of others, or of another size.
    """
    path = run_dir / ORIGIN
    stated = parse_object(path.read_bytes()) if path.is_file() else {}
    now = {"source": str(Path(data).resolve()), "resolution": resolution}
    for key, value in now.items():
        if stated.get(key) != value and value is not None:
            raise ValueError(
                f"{run_dir / CONVERTED} must be made of what --data names, it was made with {key}"
                f" {stated.get(key)}, now it is {value}; give another --out"
            )
