"""The ``edm2lite`` command: a group whose commands are imported when they run."""

from __future__ import annotations

import importlib

import click
from click.shell_completion import CompletionItem

from edm2lite.version import __version__

from ._cli import Interrupted

COMMANDS = {
    "demo": "Train on real digits, reconstruct EMA lengths, sweep and sample: all on a CPU.",
    "generate": "Generate images from models.",
    "toy": "Compare kinds of guidance on a density in the plane, where the truth is known.",
    "evaluate": "Compute feature statistics and metrics such as the Fréchet distance.",
    "plot": "Draw the curves of a training run.",
    "plan": "Choose which averages to store, how often and in which type, before training.",
    "ema-units": "Convert EMA lengths: gamma, sigma_rel, half-life, decay, window.",
    "import": "Import EDM2 and ema-pytorch checkpoints.",
    "export": "Export a model with its card, to a folder or to the Hugging Face Hub.",
    "adapters": "Describe, merge, import and export adapters such as LoRA.",
    "dataset": "Convert, encode, verify and preview data sets.",
    "magnitudes": "Measure activations, weights and updates of a network against 1, and its cost.",
    "plot-objective": "Draw what configurations train for: weight and density by noise level.",
    "snapshots": "List the snapshots of a run, find damaged ones, and thin them out.",
    "classifier": "Train the digit classifier that the demo uses as a metric.",
}
_MODULES = {  # commands whose name cannot be the name of a module
    "import": "import_run",
    "plot-objective": "plot_objective",
    "ema-units": "ema_units",
}


class _Lazy(click.Group):
    """Imports ``edm2lite.tools.<name>`` only when that command runs, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(f"edm2lite.tools.{_MODULES.get(name, name)}")
        except KeyboardInterrupt:
            raise Interrupted from None
        command: click.Command = module.main
        return command

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete names of commands without importing them."""
        matching = [
            CompletionItem(name, help=text)
            for name, text in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        # click.Group's own method imports every command, to leave out hidden ones
        return matching + super(click.Group, self).shell_complete(ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy)
@click.version_option(__version__, prog_name="edm2lite")
def main() -> None:
    """Magnitude-preserving diffusion models (EDM2) and post-hoc EMA.

    \b
    Training:        python -m edm2lite.training CONFIG --out RUN
    Reconstruction:  reconstruct_ema RUN --sigma-rel 0.05,0.10 --out DIR
    Sweep:           sweep_ema RUN --sigma-rel 0.02:0.25:0.01 --ref STATS
    """


if __name__ == "__main__":
    main()
