"""Speed of importing a run of EDM2: a folder of pickles, against reading and writing their bytes.

Writes raw snapshots of a network as the official code does (by the writer of the tests), then takes
turns: the files are copied through one buffer of 8 MiB and synced, which is the yardstick; and they
are imported. The import also computes digests, and checks names, shapes and values.

Example:
  python benchmarks/import_folder.py --net xs --snapshots 6
"""

from __future__ import annotations

import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import torch
from networks import NETWORKS

from edm2lite.interop.edm2 import import_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "interop"))
from official_files import official_bytes, random_net, vae_encoder

LIMIT = 3.0


def make_snapshots(folder: Path, net: str, count: int) -> int:
    """Write ``count`` files of two lengths in half precision; their size in bytes."""
    data = official_bytes(random_net(NETWORKS[net]).half(), encoder=vae_encoder())
    for i in range(count):
        kimg, length = (i // 2 + 1) * 2**23 // 1000, (0.05, 0.10)[i % 2]
        (folder / f"network-snapshot-{kimg:07d}-{length:.3f}.pkl").write_bytes(data)
    return count * len(data)


def copy_all(folder: Path, out: Path) -> None:
    """The bytes of every file in ``folder``, by way of one buffer of 8 MiB to files in ``out``."""
    out.mkdir()
    buffer = memoryview(bytearray(8 * 2**20))
    for path in sorted(folder.iterdir()):
        with open(path, "rb", buffering=0) as file, open(out / path.name, "wb", 0) as copy:
            while count := file.readinto(buffer):
                copy.write(buffer[:count])
            os.fsync(copy.fileno())


def measured(run: Callable[[Path], object], out: Path) -> tuple[float, float]:
    """Seconds of wall time and of the CPU; what ``run`` writes to ``out`` is deleted."""
    wall, cpu = time.perf_counter(), time.process_time()
    run(out)
    taken = time.perf_counter() - wall, time.process_time() - cpu
    shutil.rmtree(out)
    return taken


@click.command()
@click.option("--net", type=click.Choice(["xxs", "xs", "s"]), default="xs", show_default=True)
@click.option("--snapshots", default=6, show_default=True, help="Number of files.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Place for the files.")
def main(net: str, snapshots: int, rounds: int, folder: Path | None) -> None:
    """Print seconds and the ratio of both; fail if the import takes more than 3 times as long."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=folder) as name:
        source, out = Path(name) / "source", Path(name) / "out"
        source.mkdir()
        size = make_snapshots(source, net, snapshots)
        copies, imports = [], []
        for _ in range(rounds + 1):
            copies.append(measured(lambda to: copy_all(source, to), out))
            imports.append(measured(lambda to: import_folder(source, to), out))
    copies, imports = copies[1:], imports[1:]  # the first round is to warm up
    print(f"{snapshots} files of {net}, {size / 1e9:.2f} GB\n")
    print("| | wall s, median (min to max) | CPU s, median |\n|---|---|---|")
    for label, rows in (("read and write", copies), ("import", imports)):
        walls, cpus = zip(*rows, strict=True)
        spread = f"{statistics.median(walls):.2f} ({min(walls):.2f} to {max(walls):.2f})"
        print(f"| {label} | {spread} | {statistics.median(cpus):.2f} |")
    ratios = sorted(b[0] / a[0] for a, b in zip(copies, imports, strict=True))
    ratio = statistics.median(ratios)
    print(f"\nratio of each round: {ratio:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    assert ratio <= LIMIT, f"the import takes {ratio:.1f} times as long as the bytes"


if __name__ == "__main__":
    main()
