"""Every benchmark of speed, one after the other; their tables in one Markdown file.

A benchmark whose claim does not hold is named at the end, and its table is kept. The accuracy of
reconstruction and the sweep on digits need files of a run first; see their own first lines.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import click
import torch

HERE = Path(__file__).parent
CUDA = [  # each stays within ten minutes
    "gpu_check.py --sections first --out gpu_first.json",
    "gpu_check.py --sections second --out gpu_second.json",
]
CPU = [
    "train_step.py --net digits --batch-size 64 --compile",
    "train_step.py --net xxs --batch-size 8 --rounds 5 --compile",
    "memory.py",
    "sample.py",
    "generate.py",
    "ema_update.py",
    "reconstruct.py",
    "scaling.py",
    "fid_memory.py",
    "trainer_overhead.py",
    "data.py",
    "import_folder.py",
]
LONG = [
    f"train_step.py --net {net} --batch-size {batch} --dtype {dtype} --compile --device cuda"
    for net, batch in (("xs", 64), ("s", 32))
    for dtype in ("bfloat16", "float16", "float32")
] + [
    "sample.py --networks xs,s --num 256 --device cuda",
    "ema_update.py --device cuda",
]
"""Ours against the reference on a GPU: each compiles for two or three minutes."""


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("benchmarks.md"))
@click.option("--only", default="", help="Those whose command contains this.")
def main(out: Path, only: str) -> None:
    """Run what this machine can: the GPU's benchmarks first, where there is one, and the CPU's.

    \b
    Example:
      python benchmarks/run_all.py --out benchmarks.md
    """
    has_gpu = torch.cuda.is_available()
    commands = [c for c in CUDA * has_gpu + CPU + LONG * has_gpu if only in c]
    if not commands:
        raise click.UsageError(f"--only must be part of a command, no command has {only!r}")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    failed = []
    with open(out, "w", encoding="utf-8") as file:
        versions = f"Python {platform.python_version()}, torch {torch.__version__}"
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {device}"
        file.write(f"# Benchmarks\n\n{datetime.date.today()}, {machine}, {versions}\n")
        for i, command in enumerate(commands, 1):
            click.echo(f"{i} of {len(commands)}: {command}")
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, *command.split()], cwd=HERE, capture_output=True, text=True
            )
            file.write(f"\n## {command}\n\n{done.stdout}")
            if done.returncode:
                failed.append(command)
                file.write(f"\nFailed: {(done.stderr.strip() or 'no message').splitlines()[-1]}\n")
            file.write(f"\n{time.perf_counter() - start:.0f} s\n")
            file.flush()
    click.echo(f"wrote {out}")
    if failed:
        raise click.ClickException(f"{len(failed)} did not hold or run: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
