"""Speed and memory of reconstruction: one pass over K files for any number of targets.

Writes K fp16 snapshots of a network's size, reads them once so that they lie in the page cache, and
measures in fresh processes: reading the bytes into a reused buffer and writing those of 31 outputs
(the yardsticks), and building 1, 8 and 31 targets into a RAM-backed folder, with the digests of all
inputs checked and those of all outputs computed.

Example:
  python benchmarks/reconstruct.py --params 124.7e6 --snapshots 16
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from edm2lite.ema import list_snapshots
from edm2lite.ema.building import build
from edm2lite.ema.profile import PowerFunction
from edm2lite.ema.snapshot import write_snapshot
from edm2lite.ema.targets import plan_targets

TARGETS = (1, 8, 31)
READ, WRITE = 0, -1  # the yardsticks, among the numbers of targets


def make_snapshots(folder: Path, params: int, count: int) -> None:
    """``count`` files of the averages (.05, .10) of one set of random weights in 4 MiB tensors."""
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(1024, 1024, generator=generator).half()
    names = [f"layer{i:04d}.weight" for i in range(max(1, params // block.numel()))]
    for i in range(count):
        sigma_rel, time_index = ((0.05, 0.10)[i % 2], i // 2 + 1)
        moved = (block.float() + 0.01 * i).half()
        write_snapshot(
            folder,
            dict.fromkeys(names, moved),
            run="benchmark",
            profile=PowerFunction.of_width(sigma_rel, 2**20 * time_index),
            sigma_rel=sigma_rel,
            history=[(2048, 512 * time_index)],
            start_nimg=0,
            dtype=torch.float16,
            extra={},
        )


def read_all(folder: Path) -> float:
    """Seconds to read every file into one reused buffer of 8 MiB."""
    buffer = bytearray(8 * 2**20)
    begin = time.perf_counter()
    for path in sorted(folder.iterdir()):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    return time.perf_counter() - begin


def ram_folder() -> Path:
    """A new folder in memory, where the system has one."""
    ram = Path("/dev/shm") if Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
    return Path(tempfile.mkdtemp(dir=ram))


def write_all(nbytes: int, count: int) -> float:
    """Seconds to write ``count`` outputs of ``nbytes`` from one buffer of 8 MiB, nothing else."""
    buffer, out = bytes(8 * 2**20), ram_folder()
    begin = time.perf_counter()
    try:
        for i in range(count):
            with open(out / str(i), "wb", buffering=0) as file:
                for _ in range(nbytes // len(buffer)):
                    file.write(buffer)
        return time.perf_counter() - begin
    finally:
        shutil.rmtree(out)


def build_targets(folder: Path, count: int, dtype: torch.dtype) -> tuple[float, float]:
    """(seconds, peak anonymous MiB) to plan and build ``count`` targets in a RAM-backed folder."""
    out = ram_folder()
    try:
        begin = time.perf_counter()
        widths = np.geomspace(0.02, 0.25, count).tolist() if count > 1 else [0.13]
        build(plan_targets(list_snapshots(folder), sigma_rel=widths), out=out, dtype=dtype)
        seconds = time.perf_counter() - begin
    finally:
        shutil.rmtree(out)
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    shared = next(
        int(line.split()[1]) for line in status.splitlines() if line.startswith("RssFile")
    )
    return seconds, (peak - shared) / 1024


def one_measurement(number: int, folder: Path, params: int, dtype: torch.dtype) -> list[float]:
    """[seconds, peak MiB] of a yardstick or of building ``number`` targets, in this process."""
    if number == READ:
        return [read_all(folder), 0]
    if number == WRITE:
        return [write_all(params * dtype.itemsize, TARGETS[-1]), 0]
    return list(build_targets(folder, number, dtype))


def report(seconds: dict[int, list[float]], memory: dict[int, float], dtype: str) -> None:
    """Print the table and the bars, and assert them.

    Results in float32 are twice as many bytes as the type of the snapshots. Where memory is slow to
    hand out, writing them alone takes longer than the targets may: it is the bar then.
    """
    middle = {number: statistics.median(values) for number, values in seconds.items()}
    click.echo("| | seconds (median, range) | against reading | against 1 target | peak MiB |")
    click.echo("|---|---|---|---|---|")
    names = {READ: "reading the inputs", WRITE: f"writing {TARGETS[-1]} outputs"}
    for number, values in seconds.items():
        name = names.get(number, f"{number} target" + "s" * (number > 1))
        spread = f"{middle[number]:.2f} ({min(values):.2f} to {max(values):.2f})"
        against = f"{middle[number] / middle[READ]:.2f} | {middle[number] / middle[1]:.2f}"
        peak = f"{memory[number]:.0f}" if number > 0 else ""
        click.echo(f"| {name} | {spread} | {against} | {peak} |")
    bars = {
        "1 target within 3x of reading, digests checked": middle[1] <= 3 * middle[READ],
        "at most 1 GiB": max(memory.values()) <= 1024,
    }
    for number, limit in ((8, 2.5), (31, 8)):
        holds = middle[number] <= limit * middle[1]
        if dtype == "float32" and not holds:
            click.echo(f"\n- {number} targets at most {limit}x of 1: NO")
            writing = middle[WRITE] * number / TARGETS[-1]
            bars[f"{number} targets within 2x of writing them"] = middle[number] <= 2 * writing
        else:
            bars[f"{number} targets at most {limit}x of 1"] = holds
    click.echo()
    for claim, holds in bars.items():
        click.echo(f"- {claim}: {'yes' if holds else 'NO'}")
    assert all(bars.values())


@click.command()
@click.option("--params", type=float, default=124.7e6, show_default=True)
@click.option("--snapshots", type=int, default=16, show_default=True)
@click.option("--rounds", type=int, default=3, show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float16",
    show_default=True,
    help="Of the results; the default is that of reconstruct_ema.",
)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the snapshots here.")
@click.option("--one", type=int, hidden=True, help="Measure one number of targets; prints JSON.")
def main(
    params: float, snapshots: int, rounds: int, dtype: str, folder: Path | None, one: int | None
) -> None:
    """Measure and print one table."""
    where = folder or Path(tempfile.mkdtemp())
    if one is not None:
        figures = one_measurement(one, where, int(params), getattr(torch, dtype))
        return click.echo(json.dumps(figures))
    if not any(where.glob("*.safetensors")):
        where.mkdir(parents=True, exist_ok=True)
        make_snapshots(where, int(params), snapshots)
    size = sum(path.stat().st_size for path in where.iterdir())
    read_all(where)
    command = [sys.executable, __file__, "--folder", str(where)]
    command += ["--params", str(params), "--dtype", dtype, "--one"]
    seconds: dict[int, list[float]] = {number: [] for number in (READ, *TARGETS, WRITE)}
    memory = dict.fromkeys(seconds, 0.0)
    for _ in range(rounds):
        for number in seconds:
            done = subprocess.run([*command, str(number)], check=True, capture_output=True)
            taken, peak = json.loads(done.stdout)
            seconds[number].append(taken)
            memory[number] = max(peak, memory[number])
    if folder is None:
        shutil.rmtree(where)
    click.echo(
        f"{snapshots} fp16 snapshots, {params:g} parameters, {size / 1e9:.2f} GB in the page cache,"
        f" results in {dtype}\n"
    )
    report(seconds, memory, dtype)


if __name__ == "__main__":
    main()
