"""The ``edm2lite`` command: a group whose commands are imported when they run."""

from __future__ import annotations

import importlib

import click
from click.shell_completion import CompletionItem

from edm2lite.messages.commands import Group
from edm2lite.version import __version__

from ._cli import Interrupted

TOPICS = {
    "From images to a picture": {
        "train": "Train a network, continue a run, or extend it.",
        "config": "List the shipped configurations, or print one with a sentence per key.",
        "reconstruct": "Rebuild EMA weights of any length from the snapshots of a run.",
        "sweep": "Measure EMA lengths, guidance weights and training times.",
        "generate": "Generate images from models; `sample` is another name of it.",
        "play": "Play with a run in the browser, with the EMA length as a slider.",
        "demo": "Do all of this with real digits, on a CPU.",
    },
    "Data and metrics": {
        "dataset": "Convert, encode, verify and preview data sets.",
        "evaluate": "Compute feature statistics and metrics such as the Fréchet distance.",
        "classifier": "Train a small network whose features compare images.",
    },
    "Runs and their averages": {
        "plan": "Choose which averages to store, how often and in which type, before training.",
        "plot": "Draw the curves of a training run.",
        "snapshots": "List the snapshots of a run, find damaged ones, and thin them out.",
        "ema-units": "Convert EMA lengths: gamma, sigma_rel, half-life, decay, window.",
    },
    "Files of other tools": {
        "import": "Import EDM2 and ema-pytorch checkpoints.",
        "export": "Export a model with its card, to a folder or to the Hugging Face Hub.",
        "adapters": "Describe, merge, import and export adapters such as LoRA.",
    },
    "Networks and theory": {
        "magnitudes": "Measure activations, weights and updates of a network against 1.",
        "plot-objective": "Draw what configurations train for: weight and density by noise level.",
        "toy": "Compare kinds of guidance on a density in the plane, where the truth is known.",
    },
}
COMMANDS = {name: text for topic in TOPICS.values() for name, text in topic.items()}
ALIASES = {"sample": "generate", "reconstruct_ema": "reconstruct", "sweep_ema": "sweep"}
_MODULES = {  # of commands that are not named like their module
    "train": "edm2lite.training.__main__",
    "reconstruct": "edm2lite.tools.reconstruct_ema",
    "sweep": "edm2lite.tools.sweep_ema",
    "import": "edm2lite.tools.import_run",
    "plot-objective": "edm2lite.tools.plot_objective",
    "ema-units": "edm2lite.tools.ema_units",
}
_ADVICE = {
    "info": "edm2lite snapshots RUN, edm2lite dataset info DATASET, or edm2lite adapters info FILE",
    "ema": "edm2lite reconstruct",
    "finetune": "edm2lite train CONFIG --set init=MODEL",
    "fine-tune": "edm2lite train CONFIG --set init=MODEL",
    "resume": "edm2lite train with the command line of the run",
    "fid": "edm2lite evaluate",
    "score": "edm2lite evaluate",
    "stats": "edm2lite evaluate stats",
    "convert": "edm2lite dataset convert",
    "encode": "edm2lite dataset encode",
    "preview": "edm2lite dataset preview",
    "verify": "edm2lite dataset verify",
    "lora": "edm2lite adapters",
    "units": "edm2lite ema-units",
    "push": "edm2lite export --push USER/NAME",
    "help": "edm2lite -h",
    "version": "edm2lite --version",
}


class _Lazy(Group):
    """Imports the module of a command only when that command runs, so that --help is instant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        name = ALIASES.get(name, name)
        if name not in COMMANDS:
            return None
        try:
            module = importlib.import_module(_MODULES.get(name, f"edm2lite.tools.{name}"))
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
        width = max(map(len, COMMANDS))
        for title, commands in TOPICS.items():
            with formatter.section(title):
                formatter.write_dl([(f"{name:{width}}", text) for name, text in commands.items()])


@click.group(cls=_Lazy, advice=_ADVICE)
@click.version_option(__version__, prog_name="edm2lite")
def main() -> None:
    """Magnitude-preserving diffusion models (EDM2) and post-hoc EMA.

    \b
    Example:
      edm2lite train digits --out runs/digits
      edm2lite reconstruct runs/digits --sigma-rel 0.05,0.10
      edm2lite sweep runs/digits --sigma-rel 0.02:0.25:0.01 --ref digits.safetensors
      edm2lite generate runs/digits@sigma_rel=0.13 --seeds 0-63 --grid digits.png
    """


if __name__ == "__main__":
    main()
