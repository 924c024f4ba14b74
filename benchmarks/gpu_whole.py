"""Whole ways on a device: the trainer, processes, autoencoders, and images into files."""

from __future__ import annotations

import collections
import os
import socket
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_correctness import no_tf32, opened
from networks import NETWORKS
from timing import matrix_rate, queued, seconds

from edm2lite.dtypes import torch_dtype
from edm2lite.network.flops import count_macs
from edm2lite.network.unet import UNetConfig

Row = dict[str, Any]


def noise_images() -> Any:
    """1024 images of 8x8 noise in 10 classes: a data set for runs that nobody looks at."""
    return _noise((1, 8, 8), 10)


def noise_photos() -> Any:
    """1024 images of 64x64 noise in colors, in 1000 classes."""
    return _noise((3, 64, 64), 1000)


def _noise(shape: tuple[int, int, int], classes: int) -> Any:
    from edm2lite.dataset import ImageDataset
    from edm2lite.dataset.labels import Labels

    pixels = np.random.default_rng(0).integers(0, 256, (1024, *shape), np.uint8)
    labels = Labels(np.arange(1024) % classes, classes)
    return ImageDataset("noise", 1024, shape, pixels.__getitem__, table=labels)


def _config(*changes: str) -> Any:
    from edm2lite.training.config import load_config

    steps = ("batch_size=64", "microbatch=32", "total_nimg=768", "optim.rampup_nimg=0")
    cadence = "status_nimg=768", "snapshot_nimg=768", "checkpoint_nimg=384", "sample_nimg=0"
    small = ("net.backbone.model_channels=16", "net.backbone.head_channels=16")
    source = "data.source=gpu_whole:noise_images"
    return load_config("digits", (source, *small, *steps, *cadence, *changes))


def _trained(device: torch.device, *changes: str, **options: Any) -> tuple[torch.Tensor, float]:
    """All weights after a run of twelve steps, and its seconds."""
    from edm2lite.training.trainer import Trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(_config(*changes), Path(folder) / "run", device, **options)
        start = time.perf_counter()
        trainer.train()
        taken = time.perf_counter() - start
        from safetensors.torch import load_file

        tensors = load_file(Path(folder) / "run" / "last.safetensors")
        return torch.cat([t.double().flatten() for _, t in sorted(tensors.items())]), taken


def waits(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Where a step of the trainer waits for the device, from its fourth step to its tenth."""
    from edm2lite.training import Hook

    class Watch(Hook):
        """Asks torch to warn of every wait between two steps of the run."""

        def run(self, trainer: Any) -> None:
            if device.type == "cuda":
                watched = 192 <= trainer.nimg < 640
                torch.cuda.set_sync_debug_mode("warn" if watched else "default")

    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        _trained(device, hooks=[Watch(every=64)])
    found = [w for w in heard if "synchroniz" in str(w.message)]
    places = collections.Counter(f"{Path(w.filename).name}:{w.lineno}" for w in found)
    for place, count in places.most_common(8):
        yield {"waits_at": place, "per_step": count / 7}
    yield {"waits_per_step": len(found) / 7, "ok": not found}


def trainer(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Steps of the trainer as it is: XS on 64x64 images, 256 of them in four micro-batches."""
    from edm2lite.training import Hook
    from edm2lite.training.config import load_config
    from edm2lite.training.trainer import Trainer

    steps, first, batch_size = 12, 4, 64 if tiny else 256
    total = steps * batch_size
    config = _config() if tiny else load_config("edm2-img64-xs", (
        "data.source=gpu_whole:noise_photos", "net.dtype=bfloat16", "compile=true",
        f"batch_size={batch_size}", "microbatch=64", "optim.rampup_nimg=0", f"total_nimg={total}",
        f"status_nimg={total}", f"snapshot_nimg={total}", f"checkpoint_nimg={total}",
        "sample_nimg=0",
    ))  # fmt: skip
    times = {}

    class Clock(Hook):
        """Waits for the device after the fourth step and after the last but one."""

        def run(self, trainer: Any) -> None:
            if trainer.nimg // batch_size in (first, steps - 1):
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times[trainer.nimg] = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        hooks = [Clock(every=batch_size)]
        Trainer(config, Path(folder) / "run", device, hooks=hooks).train()
    (begin, end), count = times.values(), steps - 1 - first
    row: Row = {"batch": batch_size, "ms_per_step": 1e3 * (end - begin) / count}
    row["img_per_s"] = count * batch_size / (end - begin)
    flops = 6 * count_macs(config.net.backbone).total * row["img_per_s"]
    yield row | {"of_matrix_rate": flops / matrix_rate(device, torch_dtype(config.net.dtype))}


def _one_rank(device: torch.device, way: str) -> Iterator[Row]:
    """A run in a group of one process against the same run without a group."""
    from edm2lite.training import distributed

    no_tf32()
    expected, alone = _trained(device)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with distributed.process_group():
        got, taken = _trained(device, f"parallel={way}")
        error = float((got - expected).norm() / expected.norm())
        # Adam divides by gradients: an element of which nothing but rounding is left moves freely
        yield {
            "parallel": way, "weights_differ_by": error, "seconds": taken,
            "seconds_alone": alone, "ok": error < 1e-3,
        }  # fmt: skip
        if device.type == "cuda":
            got, taken = _trained(device, f"parallel={way}", "compile=true")
            error = float((got - expected).norm() / expected.norm())
            yield {
                "parallel": way, "compiled": True, "weights_differ_by": error, "seconds": taken,
                "ok": error < 1e-3,
            }  # fmt: skip


def ddp(device: torch.device, tiny: bool) -> Iterator[Row]:
    """DDP in one process: NCCL on a GPU, gloo on a CPU."""
    return _one_rank(device, "ddp")


def fsdp(device: torch.device, tiny: bool) -> Iterator[Row]:
    """FSDP2 in one process, with a checkpoint on the way."""
    return _one_rank(device, "fsdp")


def _autoencoder(device: torch.device, tiny: bool) -> Any:
    """The autoencoder of Stable Diffusion's shape with random weights."""
    from diffusers import AutoencoderKL

    from edm2lite.models.autoencoder import Autoencoder

    torch.manual_seed(0)
    widths = (8, 8, 8) if tiny else (128, 256, 512, 512)
    model: Any = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, layers_per_block=1 if tiny else 2,
        block_out_channels=widths, norm_num_groups=4 if tiny else 32,
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
    )  # fmt: skip
    return Autoencoder("random", model.to(device).eval().requires_grad_(False), "")


def vae(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Decoding of 4x64x64 latents, by type: time, and difference from float32 in pixel values."""
    no_tf32()
    autoencoder = _autoencoder(device, tiny)
    num, side = (2, 4) if tiny else (8, 64)
    latents = torch.randn(num, 4, side, side, device=device)
    exact, _ = autoencoder.decode(latents, "0..1")
    for dtype in ("float32", "float16", "bfloat16"):
        images, is_finite = autoencoder.decode(latents, "0..1", dtype)
        difference = (images.int() - exact.int()).abs().float()

        def run(dtype: str = dtype) -> None:
            autoencoder.decode(latents, "0..1", dtype)

        taken = min(queued(run, device, calls=3) for _ in range(2))
        yield {
            "dtype": dtype, "ms_per_image": 1e3 * taken / num, "img_per_s": num / taken,
            "mean_difference": float(difference.mean()), "finite": bool(is_finite),
        }  # fmt: skip
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    taken = min(queued(lambda: autoencoder.decode(latents, "0..1"), device, 3) for _ in range(2))
    yield {"dtype": "float32 with TF32", "ms_per_image": 1e3 * taken / num}


def generate(device: torch.device, tiny: bool) -> Iterator[Row]:
    """Images of S through the autoencoder into files, and the same that are not written."""
    from edm2lite.models import encoders
    from edm2lite.models.loading import Model
    from edm2lite.sampling.generation import fill
    from edm2lite.sampling.image_folder import ImageFolder
    from edm2lite.sampling.images import ImageGenerator
    from edm2lite.sampling.settings import Sampling

    autoencoder = _autoencoder(device, tiny)

    class Random(encoders.LatentEncoder):
        """The autoencoder of random weights, which lies in no folder."""

        def _loaded(self, device: torch.device) -> tuple[Any, str]:
            return autoencoder, "0..1"

    small = {"channel_mult": (1,), "num_blocks": 1, "attn_resolutions": (), "head_channels": 8}
    config = NETWORKS["s"]
    if tiny:
        config = UNetConfig(img_resolution=8, img_channels=4, model_channels=8, **small)
    net = opened(config, "float32" if tiny else "bfloat16").eval()
    model = Model("random", net, Random(mean=(0.0,) * 4, std=(1.0,) * 4), {})
    num, steps = (8, 1) if tiny else (256, 8)
    generator = ImageGenerator(
        model, range(num), sampling=Sampling(num_steps=steps), batch_size=4 if tiny else 64,
        device=device,
    )  # fmt: skip
    collections.deque(generator.part(range(num // 4)), maxlen=0)  # to warm up
    alone = seconds(lambda: collections.deque(generator, maxlen=0), device)
    with tempfile.TemporaryDirectory() as folder:
        out = ImageFolder(Path(folder) / "images")
        written = seconds(lambda: fill([generator], [out]), device)
    yield {
        "images": num, "steps": steps, "not_written_img_per_s": num / alone,
        "written_img_per_s": num / written, "share": alone / written,
    }  # fmt: skip


def png_files(device: torch.device, tiny: bool) -> Iterator[Row]:
    """How many 512x512 images the host encodes per second, by number of threads."""
    from generate import photograph

    from edm2lite.image_grid import png
    from edm2lite.threads import map_in_threads

    images = [photograph(i, 32 if tiny else 512) for i in range(4)]
    for threads in (1, 8, 16):
        items = images * (1 if tiny else 4 * threads)
        start = time.perf_counter()
        collections.deque(map_in_threads(png, items, threads), maxlen=0)
        taken = time.perf_counter() - start
        yield {"threads": threads, "img_per_s": len(items) / taken}
