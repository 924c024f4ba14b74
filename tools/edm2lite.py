"""The ``edm2lite`` command: a group whose sub-commands load on first use."""

from __future__ import annotations

import importlib

import click
from click.shell_completion import CompletionItem

import edm2lite

COMMANDS = {
    "demo": "Train on real digits, rebuild EMA lengths, sweep and draw: the whole road on a CPU.",
    "generate": "Generate images from models.",
    "toy": "Guidance on a density in the plane, where the truth is known.",
    "evaluate": "Feature statistics and Fréchet distance.",
    "plot": "The curves of a training run as a picture.",
    "plan": "Which averages to store, how often and in which type, before training.",
    "ema-units": "An EMA length in other units: gamma, sigma_rel, half-life, decay, window.",
    "import": "Networks and snapshots of EDM2 and ema-pytorch as files of ours.",
    "export": "A model with its card, as a folder and on the Hugging Face Hub.",
    "dataset": "From a folder of images to batches: convert, encode, info, verify, preview.",
    "magnitudes": "Activations, weights and updates of a network against 1; its cost.",
    "plot-objective": "What configurations train for: weight and density by noise level.",
    "snapshots": "What a run has saved, what is wrong with it, and what can go.",
    "classifier": "Train the digit classifier that the demo measures with.",
}
_MODULES = {  # where the name of a command cannot be that of a module
    "import": "import_run",
    "plot-objective": "plot_objective",
    "ema-units": "ema_units",
}


class _Lazy(click.Group):
    """Imports ``edm2lite.tools.<name>`` when the sub-command runs, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(f"edm2lite.tools.{_MODULES.get(name, name)}").main

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Without importing every command that fits, as click does to see whether it is hidden."""
        fits = [CompletionItem(n, help=h) for n, h in COMMANDS.items() if n.startswith(incomplete)]
        return fits + super(click.Group, self).shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy)
@click.version_option(edm2lite.__version__, prog_name="edm2lite")
def main() -> None:
    """Magnitude-preserving diffusion models (EDM2) and post-hoc EMA.

    \b
    Training:        python -m edm2lite.training CONFIG --out RUN
    Reconstruction:  reconstruct_ema RUN --sigma-rel 0.05,0.10 --out DIR
    Sweep:           sweep_ema RUN --sigma-rel 0.02:0.25:0.01 --ref STATS
    """


if __name__ == "__main__":
    main()
