"""``edm2lite dataset convert``: any images to a data set of one size, or of buckets."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ._cli import CountBar, user_errors

if TYPE_CHECKING:
    from edm2lite.dataset.convert import ConversionReport


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("dest", type=click.Path(path_type=Path))
@click.option("--resolution", type=click.IntRange(1), help="Side in pixels. [default: as it is]")
@click.option(
    "--crop",
    type=click.Choice(["center", "buckets", "none"]),
    default="center",
    show_default=True,
    help="Squares; the nearest of some aspect ratios of about the same area; or no cropping.",
)
@click.option(
    "--transform",
    type=click.Choice(["lanczos", "dhariwal"]),
    default="lanczos",
    show_default=True,
    help="How to resample; dhariwal is that of the ImageNet papers.",
)
@click.option("--mirror", is_flag=True, help="Also store each image mirrored (doubles the size).")
@click.option("--gray", is_flag=True, help="Store one channel.")
@click.option("--no-labels", is_flag=True, help="Folders are not classes.")
@click.option(
    "--split",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Part of CIFAR-10 or MNIST.",
)
@click.option(
    "--bucket-step",
    type=click.IntRange(1),
    help="Sides of buckets are multiples of it. [default: resolution / 8]",
)
@click.option("--skip-damaged", is_flag=True, help="Leave out what cannot be read, and list it.")
@click.option(
    "--threads",
    type=click.IntRange(1),
    default=os.cpu_count() or 1,
    show_default="one per core",
    help="That decode and resample.",
)
@user_errors
def main(
    source: Path, dest: Path, no_labels: bool, split: str, threads: int, **options: Any
) -> None:
    """Convert SOURCE to DEST, a ZIP (if it ends in .zip) or a folder.

    SOURCE is a folder or ZIP of images (the class of an image is the folder it is in), a CSV with
    columns path and label, a JSONL with these keys, or CIFAR-10 or MNIST as torchvision stores
    them. DEST has uncompressed PNGs and dataset.json, the form that EDM and EDM2 read too.

    \b
    Examples:
      edm2lite dataset convert photos photos-512.zip --resolution 512
      edm2lite dataset convert photos photos-ar.zip --resolution 512 --crop buckets
      edm2lite dataset convert imagenet/train in64.zip --resolution 64 --transform dhariwal
    """
    from edm2lite.dataset.collection import open_collection
    from edm2lite.dataset.convert import Conversion, convert_images

    conversion = Conversion(**options)
    images = open_collection(source, split, labeled=not no_labels)
    report = convert_images(images, dest, conversion, threads, CountBar("convert"))
    for line in _lines(report, dest):
        click.echo(line)


def _lines(report: ConversionReport, dest: Path) -> list[str]:
    sizes = Counter(report.sizes)
    (height, width), _ = sizes.most_common(1)[0]
    among = f" and {len(sizes) - 1} other sizes" if len(sizes) > 1 else ""
    kept = sum(report.kept) / len(report.kept)
    lines = [f"{len(report.sizes)} images of {height} x {width}{among} in {dest}"]
    lines.append(f"cropping kept {kept:.1%} of the area of an image on average")
    if report.enlarged:
        lines.append(f"note: {report.enlarged} images were smaller and have been enlarged")
    if report.misfits:
        lines.append(
            f"note: {len(report.misfits)} images fit no bucket and were left out:"
            f" {', '.join(report.misfits[:5])}{', ...' if len(report.misfits) > 5 else ''}"
        )
    lines += [f"left out: {damage}" for damage in report.damaged]
    return lines
