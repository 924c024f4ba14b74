"""Throughput of the loader against that of the smallest EDM2 network, on the same cores.

The step is one of the XXS preset on latents of 64x64: loss, gradients, Adam. The loader prepares
complete batches (images, labels, noise levels, noise, and the noise that latents are drawn with),
alternating with the step. The data are made here: latents in sparse files, which are read from the
page cache; PNGs of noise-like blocks, in a ZIP as ``edm2lite dataset convert`` writes it.

Images per second of CPU time, summed over threads, are compared: the work that a core does, however
many others share it. Memory is the resident set, and the part of it that is not file pages, over
one epoch of latents.
"""

from __future__ import annotations

import io
import json
import platform
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image

from edm2lite.dataset import open_dataset
from edm2lite.diffusion.objective import DenoisingLoss
from edm2lite.diffusion.precond import Precond, PrecondConfig
from edm2lite.models.encoders import EDM2_LATENTS
from edm2lite.network.unet import UNetConfig
from edm2lite.training.data import BatchSource, DataConfig

LATENTS_CLAIM, PNG_CLAIM = 20, 5
ROW = 8 * 64 * 64 * 4
BATCH = 64


def make_latents(folder: Path, count: int, per_shard: int = 4096) -> Path:
    """A data set of ``count`` latents that takes next to no space."""
    shards = []
    for number, begin in enumerate(range(0, count, per_shard)):
        n = min(per_shard, count - begin)
        entry = {"dtype": "F32", "shape": [n, 8, 64, 64], "data_offsets": [0, n * ROW]}
        header = json.dumps({"latents": entry}).encode()
        with open(folder / f"latents-{number:05d}.safetensors", "wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(file.tell() + n * ROW)
        shards.append({"count": n, "size": [64, 64], "digest": None})
    index = {"format": "edm2lite.latents/1", "encoder": json.loads(EDM2_LATENTS.to_json()),
             "shards": shards, "label_dim": None, "classes": [], "settings": {}}  # fmt: skip
    (folder / "latents.json").write_text(json.dumps(index))
    return folder


def make_pngs(path: Path, count: int) -> Path:
    """A ZIP of PNGs of 64x64, uncompressed."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as file:
        for i in range(count):
            blocks = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(blocks).resize((64, 64)).save(buffer, "PNG", compress_level=0)
            file.writestr(f"{i:08d}.png", buffer.getvalue())
    return path


def training_step(batch: int) -> Callable[[], int]:
    """A function that runs a step of the XXS preset and returns its number of images."""
    unet = UNetConfig(img_resolution=64, img_channels=4, label_dim=1000, model_channels=64)
    loss = DenoisingLoss(Precond(PrecondConfig(backbone=unet)))
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    x, noise = torch.randn(2, batch, 4, 64, 64) / 2
    labels, sigma = torch.zeros(batch, dtype=torch.int64), torch.ones(batch)

    def step() -> int:
        loss(x, labels, sigma, noise).loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return batch

    return step


def loading(source: Path, workers: int, count: int) -> Callable[[], int]:
    """A function that loads ``count`` images or a few more, from where the last call ended."""
    loader = BatchSource(
        open_dataset(source), seed=0, batch_size=BATCH, microbatch=BATCH,
        data=DataConfig(source=str(source), workers=workers), is_pinned=torch.cuda.is_available(),
    )  # fmt: skip
    nimg = 0

    def load() -> int:
        nonlocal nimg
        begin = nimg
        while nimg - begin < count:
            loader.batch(nimg)
            nimg += BATCH
        return nimg - begin

    return load


def resident_mib() -> tuple[float, float]:
    """Resident set of this process, and the part of it that is not file pages."""
    status = dict(x.split(":", 1) for x in Path("/proc/self/status").read_text().splitlines())
    total, anonymous = (int(status[k].split()[0]) / 1024 for k in ("VmRSS", "RssAnon"))
    return total, anonymous


def epoch(source: Path, workers: int) -> tuple[float, list[tuple[float, float]]]:
    """Images per second over an epoch, and memory at every twentieth of it."""
    dataset = open_dataset(source)
    load = loading(source, workers, len(dataset) // 20)
    start = time.perf_counter()
    done, memory = 0, []
    while done < len(dataset):
        done += load()
        memory.append(resident_mib())
    return done / (time.perf_counter() - start), memory


@click.command()
@click.option(
    "--rounds", default=5, show_default=True, help="Number of rounds; each times everything once."
)
@click.option("--threads", default=2, show_default=True, help="Number of CPU threads of the step.")
@click.option(
    "--latents", "num_latents", default=100_000, show_default=True, help="Number of latents."
)
@click.option("--seconds", default=2.0, show_default=True, help="Seconds of loading in each round.")
def main(rounds: int, threads: int, num_latents: int, seconds: float) -> None:
    """Time the loader against a training step and print Markdown tables.

    \b
    Example:
      python benchmarks/data.py --threads 2
    """
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "latents").mkdir()
        latents = make_latents(Path(name) / "latents", num_latents)
        pngs = make_pngs(Path(name) / "png.zip", 4000)
        runs = {"training step, XXS": training_step(2)}
        for title, source in (("latents 4x64x64", latents), ("PNG 3x64x64", pngs)):
            for workers in (1, 2):
                probe = loading(source, workers, 256)
                start = time.perf_counter()
                rate = probe() / (time.perf_counter() - start)
                plural = "s" if workers > 1 else ""
                runs[f"{title}, {workers} thread{plural}"] = loading(
                    source, workers, int(seconds * rate)
                )
        rates: dict[str, list[tuple[float, float]]] = {title: [] for title in runs}
        for run in runs.values():
            run()
        for _ in range(rounds):
            for title, run in runs.items():
                start, cpu_start = time.perf_counter(), time.process_time()
                count = run()
                wall, cpu = time.perf_counter() - start, time.process_time() - cpu_start
                rates[title].append((count / wall, count / cpu))
        speed, memory = epoch(latents, 2)
    report(rates, threads)
    totals, anonymous = zip(*memory, strict=True)
    click.echo(
        f"\nOne epoch of {num_latents} latents at {speed:.0f} images/s. Memory after a twentieth,"
        f" at most, and at the end: resident {totals[0]:.0f}, {max(totals):.0f}, {totals[-1]:.0f}"
        f" MiB; without file pages {anonymous[0]:.0f}, {max(anonymous):.0f}, {anonymous[-1]:.0f}."
    )
    growth = max(totals) - totals[0]
    assert growth < 64, f"memory must stay flat over an epoch, it grew by {growth:.0f} MiB"


def report(rates: dict[str, list[tuple[float, float]]], threads: int) -> None:
    """Print the table and check the claims; rates are per second, and per second of CPU time."""
    step = [cpu for _, cpu in rates["training step, XXS"]]
    click.echo(
        f"{threads} cores, torch {torch.__version__}, {platform.machine()}, batches of {BATCH}\n"
    )
    click.echo(
        "| what | images/s, median (quartiles) | per CPU second | against the step (quartiles) |"
    )
    click.echo("|---|---|---|---|")
    for title, found in rates.items():
        walls, cpus = zip(*found, strict=True)
        low, median, high = statistics.quantiles(walls, n=4)
        ratios = [rate / s for rate, s in zip(cpus, step, strict=True)]
        r_low, ratio, r_high = statistics.quantiles(ratios, n=4)
        click.echo(
            f"| {title} | {median:.1f} ({low:.1f} to {high:.1f}) | {statistics.median(cpus):.2f} |"
            f" {ratio:.0f} ({r_low:.0f} to {r_high:.0f}) |"
        )
        claim = LATENTS_CLAIM if "latents" in title else PNG_CLAIM if "PNG" in title else 0
        assert ratio >= claim, f"{title} must be {claim} times as fast as the step, is {ratio:.1f}"


if __name__ == "__main__":
    main()
