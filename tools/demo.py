"""``edm2lite demo``: the full pipeline on real digits, by the commands that a person would type."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import click

from edm2lite.claim import claim_file, claim_folder
from edm2lite.messages.commands import Command

from ._cli import COUNT, Interrupted, user_errors

LENGTHS = "0.02,0.03,0.05,0.07,0.10,0.14,0.20,0.25"
STEPS = 16


@click.command(cls=Command)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs/digits",
    show_default=True,
    help="Output folder of the run.",
)
@click.option("--fresh", is_flag=True, help="Remove the folder and start over.")
@click.option(
    "--num",
    type=COUNT,
    default=1000,
    show_default=True,
    help="Number of images per EMA length, and to judge the best one by.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a value of the training configuration.",
)
@user_errors
def main(out: Path, fresh: bool, num: int, overrides: tuple[str, ...]) -> None:
    """Train on scikit-learn's digits, rebuild EMA lengths, sweep them, and draw.

    Prints every command before it runs it. Started again, it continues where it was interrupted.

    \b
    Example:
      edm2lite demo --out runs/digits
    """
    _check_extra()
    with claim_file(out):
        if fresh:
            _remove(out)
        _run_all(out, num, overrides)


def _run_all(out: Path, num: int, overrides: tuple[str, ...]) -> None:
    begin = time.perf_counter()
    run = shlex.quote(str(out))
    changes = "".join(f" --set {shlex.quote(change)}" for change in overrides)
    _run(f"edm2lite train digits --out {run}{changes}")
    _run(f"edm2lite reconstruct {run} --sigma-rel {LENGTHS} --out {run}/ema")
    _run(f"edm2lite classifier --out {run}/classifier.safetensors")
    _run(
        f"edm2lite evaluate stats digits --extractor digits"
        f" --weights {run}/classifier.safetensors --out {run}/reference.safetensors"
    )
    _run(
        f"edm2lite sweep {run} --sigma-rel {LENGTHS} --ref {run}/reference.safetensors"
        f" --weights {run}/classifier.safetensors --num {num} --steps {STEPS}"
    )
    averages = " ".join(shlex.quote(str(path)) for path in sorted((out / "ema").glob("*")))
    _run(
        f"edm2lite generate {run} {averages} --seeds 0-9 --class all --steps {STEPS}"
        f" --out {run}/samples --grid {run}/samples.png"
    )

    from edm2lite import sweep

    from ._report import judge, write_report

    points = sweep.read_csv(out / "sweep.csv")
    best = sweep.best_average(points)
    images = out / f"best-{best.sigma_rel:.5f}"
    _run(
        f"edm2lite generate {run}@sigma_rel={best.sigma_rel} --seeds 0-{num - 1} --class all"
        f" --steps {STEPS} --out {shlex.quote(str(images))}"
    )
    accuracy, real = judge(images)
    summary = write_report(out / "report.md", points, accuracy=accuracy, real=real)
    click.echo(f"\n{summary}\n\n{out / 'report.md'}  ({time.perf_counter() - begin:.0f} s)")


def _run(command: str) -> None:
    """Print a command as it would be typed, run it, and stop if it fails."""
    click.secho(f"\n$ {command}", bold=True)
    name, *words = shlex.split(command)
    scripts = sysconfig.get_path("scripts")
    program = sys.executable if name == "python" else shutil.which(name, path=scripts)
    if program is None:
        raise FileNotFoundError(
            f"{name} must be in {scripts}; pip install -e '.[demo]' puts it there"
        )
    sys.stdout.flush()
    if _ended(subprocess.Popen([program, *words])):
        raise click.ClickException(f"{name} failed; run edm2lite demo again to continue from here")


def _ended(program: subprocess.Popen[bytes]) -> int:
    """The exit code of a program. Ctrl-C reaches it too, and training then writes a checkpoint."""
    is_interrupted = False
    while True:
        try:
            code = program.wait()
        except KeyboardInterrupt:
            is_interrupted = True
            continue
        if is_interrupted or code == Interrupted.exit_code:
            raise KeyboardInterrupt
        return code


def _check_extra() -> None:
    for module in ("sklearn", "matplotlib", "torch_fidelity"):
        try:
            __import__(module)
        except ImportError as error:
            raise ImportError(f"the demo needs {module}; pip install 'edm2lite[demo]'") from error


def _remove(out: Path) -> None:
    """Remove the folder of an earlier demo, and nothing else."""
    if not out.exists():
        return
    if not (out / "run.json").is_file():
        raise ValueError(f"--fresh removes the folder of a run only, {out} has no run.json")
    with claim_folder(out):  # nobody trains there
        shutil.rmtree(out)
