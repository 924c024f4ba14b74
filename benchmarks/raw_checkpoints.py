"""Memory and time of averages from sharded checkpoints.

``memory`` makes checkpoints of Hugging Face's layout whose numbers are all zero, in sparse files,
so that a model of 7e9 parameters needs no disk but for the result; each step runs in a process of
its own, whose peak of resident memory is printed. All numbers being zero says nothing about how
weights move: a random walk is assumed in place of a fit. ``speed`` fills smaller files with random
numbers, and compares one average with reading the same bytes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from edm2lite.ema import targets
from edm2lite.ema.planning import random_walk
from edm2lite.interop.hugging_face import build_hugging_face
from edm2lite.interop.raw_run import import_checkpoints

SHARD = 5 * 10**9
MIB = 2**20


def tensors_of(params: float) -> dict[str, tuple[int, ...]]:
    """Shapes like those of a Llama: two tables, and layers of a width of 4096, or 1024 if small."""
    width = 4096 if params >= 1e9 else 1024
    layer = {"attn": (4 * width, width), "mlp": (8 * width, width), "norm": (width,)}
    shapes: dict[str, tuple[int, ...]] = {"embed": (32_000, width), "head": (32_000, width)}
    size = sum(int(np.prod(s)) for s in layer.values())
    for i in range(max(1, round((params - 2 * 32_000 * width) / size))):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def write_checkpoint(folder: Path, shapes: dict[str, tuple[int, ...]], *, fill: bool) -> int:
    """A checkpoint in bfloat16; returns its bytes."""
    folder.mkdir(parents=True)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = total = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if size + nbytes > SHARD:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size, total = size + nbytes, total + nbytes
    places = {}
    for i, part in enumerate(shards, 1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in part.items():
            begin, end = end, end + 2 * int(np.prod(shape))
            entries[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
            places[tensor] = name
        text = json.dumps(entries).encode()
        with open(folder / name, "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            start = file.tell()
            file.truncate(start + end)
            for _ in range(-(-end // (64 * MIB)) if fill else 0):
                count = min(64 * MIB, start + end - file.tell()) // 2
                numbers = np.random.default_rng(file.tell()).standard_normal(count, np.float32)
                file.write((numbers.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return total


def child(step: str, root: Path) -> None:
    """One step in this process; prints seconds and the peak of resident memory."""
    started, cpu_started = time.perf_counter(), time.process_time()
    if step == "import":
        import_checkpoints(root / "checkpoints", root / "run")
    else:
        assume_walk()
        (plan,) = targets.plan_targets(root / "run", sigma_rel=0.1)
        started, cpu_started = time.perf_counter(), time.process_time()
        build_hugging_face(plan, root / "model")
    status = Path("/proc/self/status").read_text()  # ru_maxrss would count the parent's, too
    peak = int(status.partition("VmHWM:")[2].split()[0]) / 1024
    cpu = time.process_time() - cpu_started
    click.echo(f"{time.perf_counter() - started:.1f} {cpu:.1f} {peak:.0f}")


def assume_walk() -> None:
    def fit(infos: object, progress: Callable[[int, int], object] | None = None) -> object:
        return random_walk(infos[-1].nimg, infos[0].nimg)  # type: ignore[index]

    targets.fit_model = fit  # type: ignore[assignment]


def reading(root: Path) -> tuple[float, float]:
    """Seconds, also of a core, to read all checkpoints once, in blocks of 8 MiB."""
    started, cpu, block = time.perf_counter(), time.process_time(), bytearray(8 * MIB)
    for path in sorted(root.glob("checkpoints/*/*.safetensors")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(block):
                pass
    return time.perf_counter() - started, time.process_time() - cpu


@click.command()
@click.argument("what", type=click.Choice(["memory", "speed"]))
@click.option("--params", type=float, default=7e9, show_default=True)
@click.option("--files", default=16, show_default=True, help="Number of checkpoints.")
@click.option("--folder", type=click.Path(path_type=Path), help="For the files. [default: /tmp]")
@click.option("--step", hidden=True)
@click.option("--root", type=click.Path(path_type=Path), hidden=True)
def main(
    what: str, params: float, files: int, folder: Path | None, step: str | None, root: Path | None
) -> None:
    """Print seconds, GB per second and peak memory of importing, and of one average."""
    if step is not None and root is not None:
        return child(step, root)
    root = Path(tempfile.mkdtemp(dir=folder))
    try:
        shapes = tensors_of(params)
        total = sum(
            write_checkpoint(root / f"checkpoints/checkpoint-{k}", shapes, fill=what == "speed")
            for k in range(1, files + 1)
        )
        click.echo(f"{files} checkpoints of {total / files / 1e9:.2f} GB, bfloat16, sharded\n")
        click.echo("| step | s | s of a core | GB/s | peak memory, MiB |\n|---|---|---|---|---|")
        if what == "speed":
            seconds, cpu = min(reading(root) for _ in range(2))
            rate = total / seconds / 1e9
            click.echo(f"| read the bytes | {seconds:.1f} | {cpu:.1f} | {rate:.2f} | |")
        for step in ("import", "average"):
            args = [sys.executable, __file__, what, "--step", step, "--root", str(root)]
            out = subprocess.run(args, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            rate = total / float(out[0]) / 1e9
            click.echo(f"| {step} | {out[0]} | {out[1]} | {rate:.2f} | {out[2]} |")
            assert float(out[2]) < 1024, "memory must stay below 1 GiB"
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
