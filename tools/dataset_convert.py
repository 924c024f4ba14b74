"""``edm2lite dataset convert``: any images to a data set of one size, or of buckets."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edm2lite.dataset.hints import HINTS
from edm2lite.messages.commands import Command

from ._cli import CountBar, user_errors

if TYPE_CHECKING:
    from edm2lite.dataset.convert import ConversionReport


TOPICS = {
    "Pictures": "resolution crop bucket-step transform mirror gray exif background",
    "Classes, captions and condition images": (
        "no-labels no-captions condition no-conditions normalize-like"
    ),
    "Reading": "split skip-damaged threads",
}


@click.command(cls=Command, topics=TOPICS)
@click.argument("source")
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--resolution", type=click.IntRange(1), help="Side in pixels. [default: unchanged]")
@click.option(
    "--crop",
    type=click.Choice(["center", "buckets", "none"]),
    default="center",
    show_default=True,
    help="Crop to squares, to the nearest of several aspect ratios of similar area, or not at all.",
)
@click.option(
    "--transform",
    type=click.Choice(["lanczos", "dhariwal"]),
    default="lanczos",
    show_default=True,
    help="Method of resampling; dhariwal is the one of the ImageNet papers.",
)
@click.option("--mirror", is_flag=True, help="Store each image mirrored too; doubles the size.")
@click.option("--gray", is_flag=True, help="Store images with one channel.")
@click.option(
    "--exif",
    type=click.Choice(["turn", "ignore"]),
    default="turn",
    show_default=True,
    help="Turn photos as their EXIF says, or ignore it, as EDM and EDM2 do.",
)
@click.option(
    "--background",
    metavar="COLOR",
    default="white",
    show_default=True,
    help="Color behind transparent parts (a name or #rrggbb), or none to leave out transparency, as"
    " EDM and EDM2 do: the colors stored there show.",
)
@click.option(
    "--no-labels", is_flag=True, help="Ignore labels; do not derive classes from folder names."
)
@click.option(
    "--condition",
    metavar="|".join([*HINTS, "lowres:N", "FOLDER"]),
    help="Store a condition image beside each image: computed from it, or of the same name in a"
    " folder. lowres:N shows the mean of each N x N pixels.",
)
@click.option("--no-conditions", is_flag=True, help="Leave out condition images.")
@click.option("--no-captions", is_flag=True, help="Leave out captions.")
@click.option(
    "--normalize-like",
    type=click.Path(path_type=Path, exists=True),
    help="Data set whose normalization of condition images is taken, such as the training set of"
    " validation images. [default: that of SOURCE, or measured]",
)
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Part of CIFAR-10 or MNIST to convert.",
)
@click.option(
    "--bucket-step",
    type=click.IntRange(1),
    help="Number that the sides of buckets are multiples of. [default: resolution / 8]",
)
@click.option(
    "--skip-damaged", is_flag=True, help="Leave out images that cannot be read, and list them."
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="one per core",
    help="Number of threads that decode and resample.",
)
@user_errors
def main(
    source: str, dest: Path, condition: str | None,
    no_labels: bool, no_conditions: bool, no_captions: bool,
    normalize_like: Path | None, split: str, threads: int, background: str, **options: Any,
) -> None:  # fmt: skip
    """Convert SOURCE to DEST, a ZIP (if it ends in .zip) or a folder.

    SOURCE is a folder or ZIP of images (the class of an image is the folder it is in, or stands in
    dataset.json), a CSV with columns path, label, condition and text, a JSONL with these keys,
    CIFAR-10 or MNIST as torchvision stores them, openmoji, emoji with their names (CC BY-SA 4.0),
    or digits, scikit-learn's. DEST has uncompressed PNGs and dataset.json, the form that EDM and
    EDM2 read too if every image has a label or none has.

    \b
    Examples:
      edm2lite dataset convert photos photos-512.zip --resolution 512
      edm2lite dataset convert photos photos-ar.zip --resolution 512 --crop buckets
      edm2lite dataset convert openmoji emoji-32.zip --resolution 32
      edm2lite dataset convert photos outlines.zip --resolution 64 --condition edges
      edm2lite dataset convert imagenet/train in64.zip --resolution 64 --transform dhariwal
    """
    from edm2lite.claim import claim_file
    from edm2lite.dataset import Conversion, convert_images, open_collection
    from edm2lite.dataset.collection import with_condition_folder
    from edm2lite.dataset.condition_files import normalization_of

    if normalize_like is not None:
        options["normalization"] = normalization_of(normalize_like)
    is_folder = condition is not None and Path(condition).exists()
    options["hint"] = None if is_folder else condition
    conversion = Conversion(background=None if background == "none" else background, **options)
    carried = {
        "labeled": not no_labels, "conditions": not no_conditions, "captions": not no_captions
    }  # fmt: skip
    with claim_file(dest):  # a large folder takes minutes to list
        images = open_collection(source, split, resolution=conversion.resolution, **carried)
        if condition is not None and is_folder:
            images = with_condition_folder(images, Path(condition))
        report = convert_images(images, dest, conversion, threads, CountBar("convert"))
    for line in _lines(report, dest):
        click.echo(line)
    labels = None if images.table is None else images.table.values
    if labels is not None and labels.ndim == 1 and (labels == -1).any():
        click.echo("note: some images have no label, which EDM and EDM2 cannot read")


def _lines(report: ConversionReport, dest: Path) -> list[str]:
    sizes = Counter(report.sizes)
    (height, width), _ = sizes.most_common(1)[0]
    among = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    kept = sum(report.kept) / len(report.kept)
    lines = [f"{len(report.sizes)} images of {height} x {width}{among} in {dest}"]
    lines.append(f"cropping kept {kept:.1%} of the area of an image on average")
    for condition, values in report.normalization.items():
        lines.append(
            f"condition images ({condition}) are normalized by mean {values.mean:.2f} and standard"
            f" deviation {values.std:.2f}"
        )
    if report.enlarged:
        lines.append(f"note: {report.enlarged} images were smaller and have been enlarged")
    if report.misfits:
        lines.append(
            f"note: {len(report.misfits)} images fit no bucket and were left out:"
            f" {', '.join(report.misfits[:5])}{', ...' if len(report.misfits) > 5 else ''}"
        )
    lines += [f"left out: {damage}" for damage in report.damaged]
    return lines
