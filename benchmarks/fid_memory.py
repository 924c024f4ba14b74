"""Peak memory of a Fréchet distance with its interval, for more and more images.

    python benchmarks/fid_memory.py

Features are made up, as wide as Inception's; each number of images is measured in a process of its
own, from rows on disk to the interval, as `edm2lite evaluate` does.
"""

from __future__ import annotations

import argparse
import functools
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from edm2lite.metrics.extractors import Extractor
from edm2lite.metrics.feature_stats import FeatureStats
from edm2lite.metrics.frechet import FID
from edm2lite.metrics.influence import covariance
from edm2lite.metrics.measurement import ImageRows
from edm2lite.metrics.rows import Rows


def measure(num: int, width: int, folder: Path) -> float:
    """MiB at the peak."""
    extractor = Extractor("made up", None, None, "")

    def make(wanted: range) -> tuple[torch.Tensor, None]:
        generator = torch.Generator().manual_seed(wanted[0])
        return torch.randn(len(wanted), width, generator=generator), None

    rows = Rows(folder, {"width": width})
    rows.fill(num, make)
    reference = FeatureStats(0, np.zeros(width), np.eye(width), "made up", "", "", "")
    parts = functools.partial(rows.parts, num)
    measured = FID(reference, extractor).measure(ImageRows(parts, num))
    covariance([measured.influences])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, nargs="+", default=[4096, 16384, 49152])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--one", type=Path, help="measure one number here, features in this folder")
    args = parser.parse_args()
    if args.one:
        print(measure(args.num[0], args.width, args.one))
        return
    print("| images | features in float64 | peak memory |\n|---|---|---|")
    for num in args.num:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, __file__, "--num", str(num), "--width", str(args.width)]
            done = subprocess.run(
                [*command, "--one", folder], check=True, stdout=subprocess.PIPE, text=True
            )
        size = num * args.width * 8 / 2**20
        print(f"| {num} | {size:.0f} MiB | {float(done.stdout):.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()
