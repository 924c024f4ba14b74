"""What a GPU makes of all this: whether it is right, then how fast it is, section by section.

A section is a process of its own. A row is printed as soon as it is known and is in the JSON file
from then on. A section that fails, lacks a package or runs out of time costs one line, and the next
one begins. Sections come in the order of their worth, in two halves of at most ten minutes. The
first half needs torch (2.11 will do), numpy, scipy, safetensors, xxhash, threadpoolctl and click;
the second also what training, images and autoencoders need.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch

HERE = Path(__file__).parent
if sys.path[0] == str(HERE):  # last, or the benchmark of that name would hide transformers
    sys.path.append(sys.path.pop(0))
sys.path.append(str(HERE.parent))  # the first half runs from a checkout that is not installed

Row = dict[str, Any]
FIRST = {  # section -> where its function is, and its limit in seconds
    "correctness": ("gpu_correctness:correctness", 130),
    "ceilings": ("gpu_speed:ceilings", 40),
    "train_xs": ("gpu_speed:train_xs", 230),
    "train_s": ("gpu_speed:train_s", 170),
}
SECOND = {
    "waits": ("gpu_whole:waits", 60),
    "trainer": ("gpu_whole:trainer", 150),
    "sampling": ("gpu_speed:sampling", 130),
    "vae": ("gpu_whole:vae", 60),
    "generate": ("gpu_whole:generate", 60),
    "png": ("gpu_whole:png_files", 25),
    "tail": ("gpu_speed:tail", 40),
    "ddp": ("gpu_whole:ddp", 70),
    "fsdp": ("gpu_whole:fsdp", 70),
    "convolutions": ("gpu_speed:convolutions", 70),
    "upsampling": ("gpu_speed:upsampling", 40),
}
SECTIONS = {**FIRST, **SECOND}
HALVES = {"first": list(FIRST), "second": list(SECOND), "all": list(SECTIONS)}


def rows_of(section: str, device: str, *, tiny: bool) -> Iterator[Row]:
    """The rows of a section, in this process; one ``skipped`` row if a package is missing."""
    module, name = SECTIONS[section][0].split(":")
    try:
        yield from getattr(import_module(module), name)(torch.device(device), tiny)
    except ModuleNotFoundError as error:
        if f"{error.name}".startswith("edm2lite") and error.name != "edm2lite.training":
            raise
        yield {"skipped": f"needs the package {error.name}"}


def measured(
    section: str, device: str, *, tiny: bool, limit: float, module: Path = Path(__file__)
) -> Iterator[Row]:
    """The rows of a section in a process of its own, which ends when its time is over."""
    command = [sys.executable, str(module), "--one", section, "--device", device]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [*command, *["--tiny"] * tiny],
            cwd=HERE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
        late = threading.Event()

        def stop() -> None:
            late.set()
            _kill(process)

        timer = threading.Timer(limit, stop)
        timer.start()
        assert process.stdout is not None
        try:
            with process.stdout as lines:
                yield from (json.loads(line) for line in lines if line.startswith("{"))
            code = process.wait()
        finally:
            timer.cancel()
            _kill(process)
        if late.is_set():
            yield {"failed": f"stopped after {limit:.0f} s"}
        elif code:
            errors.seek(0)
            said = [line.strip() for line in errors.read().splitlines() if line.strip()]
            yield {"failed": said[-1] if said else f"ended with code {code}"}


def _kill(process: subprocess.Popen[str]) -> None:
    """End the process with all that it has started: compilers, for one."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def text(row: Row) -> str:
    """A row as a line: what it is of, and numbers to four digits."""
    cells = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values())
    return "  ".join(f"{name} {cell}" for name, cell in zip(row, cells, strict=True))


def machine(device: str) -> Row:
    """The machine and the versions."""
    row: Row = {"torch": torch.__version__, "python": platform.python_version()}
    row |= {"cores": os.cpu_count(), "machine": platform.machine()}
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        row |= {"gpu": properties.name, "gib": properties.total_memory / 2**30}
        row |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return row


def chosen(value: str) -> list[str]:
    """The sections that an option names."""
    names = [name for part in value.split(",") for name in HALVES.get(part, [part])]
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        known = ", ".join([*HALVES, *SECTIONS])
        raise click.UsageError(f"--sections must be among {known}; got {unknown[0]}")
    return names


@click.command()
@click.option("--sections", default="first", show_default=True, help="first, second, all or names.")
@click.option("--device", default="cuda", show_default=True, help="Device to measure.")
@click.option("--tiny", is_flag=True, help="Small everything: does it run at all?")
@click.option("--limit", default=570.0, show_default=True, help="Seconds for all sections.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("gpu_check.json"))
@click.option("--one", hidden=True, help="Run this section here and print JSON lines.")
def main(sections: str, device: str, tiny: bool, limit: float, out: Path, one: str | None) -> None:
    """Check and measure a GPU, section after section.

    \b
    Example, two calls of at most ten minutes each:
      python benchmarks/gpu_check.py --sections first --out first.json
      python benchmarks/gpu_check.py --sections second --out second.json
    """
    if one is not None:
        for row in rows_of(one, device, tiny=tiny):
            click.echo(json.dumps(row))
            sys.stdout.flush()
        return
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise click.ClickException("a GPU must be visible to torch, none is; try --device cpu")
    names, end = chosen(sections), time.monotonic() + limit
    found: dict[str, Any] = {"machine": machine(device), "sections": {}}
    click.echo(text(found["machine"]))
    bad = []
    for name in names:
        rows: list[Row] = found["sections"].setdefault(name, [])
        start = time.monotonic()
        click.echo(f"\n{name}")
        left = end - start if tiny else min(SECTIONS[name][1], end - start)
        made = measured(name, device, tiny=tiny, limit=left) if left > 5 else iter(())
        for row in made:
            rows.append(row)
            click.echo("  " + text(row))
            out.write_text(json.dumps(found, indent=1))
        if not rows:
            rows.append({"failed": "no time was left" if left <= 5 else "gave no result"})
            click.echo("  " + text(rows[-1]))
        if any("failed" in row or row.get("ok") is False for row in rows):
            bad.append(name)
        click.echo(f"  {time.monotonic() - start:.0f} s")
    out.write_text(json.dumps(found, indent=1))
    click.echo(f"\nwrote {out}")
    if bad:
        raise click.ClickException(f"{len(bad)} sections failed or found errors: {', '.join(bad)}")


if __name__ == "__main__":
    main()
