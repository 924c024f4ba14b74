"""Commands of click whose help is grouped by topic, and which answer a mistake in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO, Any

import click

HELP = ("-h", "--help")

_NEAR = 0.7  # how alike a name and a known one have to be, 1 is equal
_ADVICE = (  # names that people try, what the command must have, and what to write
    (
        "num n number count num-images samples num-samples",
        "--seeds",
        "--seeds 0-63 makes 64 images",
    ),
    ("seed", "--seeds", "--seeds 7 makes the image of seed 7, and --seeds 0-63 those of 64 seeds"),
    ("images", "--seeds", "--seeds 0-63 makes 64 images, and --init-image begins with one"),
    ("cfg cfg-scale guidance-scale guidance-weight scale w", "--guidance", "write --guidance 2"),
    ("num-steps sampling-steps num-inference-steps", "--steps", "write --steps 32"),
    ("sampler scheduler method", "--solver", "write --solver"),
    ("label labels classes class-idx cls", "--class", "write --class"),
    ("text caption", "--prompt", 'write --prompt "TEXT"'),
    ("ema ema-length ema-std length std sigma", "--sigma-rel", "write --sigma-rel 0.10"),
    ("reference refs stats statistics", "--ref", "write --ref STATISTICS"),
    ("output outdir out-dir output-dir output-path outfile save-to dest", "--out", "write --out"),
    ("lr learning-rate", "--set", "write --set optim.ref_lr=0.005"),
    ("batch batch-size bs", "--set", "write --set batch_size=256"),
    ("batch-size bs batch-gpu", "--batch", "write --batch 64"),
    ("epochs steps max-steps duration total kimg", "--set", "write --set total_nimg=1M"),
    ("seed", "--set", "write --set seed=1"),
    ("gpus devices num-gpus nproc", "--set", "start it by torchrun to use several GPUs"),
    ("resume continue", "--set", "the same command line continues a run"),
    ("config cfg-file preset", "CONFIG", "give the configuration without a name before it"),
    ("model net network checkpoint ckpt", "MODEL", "give the model without a name before it"),
    ("run run-dir snapshots", "RUN", "give the run without a name before it"),
)


class OneLineUsageError(click.UsageError):
    """A mistake on the command line, told in one line, with exit code 2."""

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the line; the usage of the command is left to its help."""
        super(click.UsageError, self).show(file)


class _Helpful(click.Command):
    """What :class:`Command` and :class:`Group` have in common."""

    def __init__(self, *args: Any, **options: Any):
        settings = options.get("context_settings") or {}
        options["context_settings"] = {"help_option_names": [*HELP]} | settings
        super().__init__(*args, **options)

    def make_context(self, *args: Any, **options: Any) -> click.Context:
        """The context of a call; see :meth:`click.Command.make_context`."""
        with _in_one_line():
            return super().make_context(*args, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; see :meth:`click.Command.invoke`."""
        with _in_one_line():
            return super().invoke(ctx)


class Command(_Helpful):
    """A command with ``-h``, help in topics, and hints for options that it does not have.

    Args:
        topics: Title -> names of options without dashes, separated by spaces, in their order on the
            page. Options that are in no topic come last.

    Example:
        >>> @click.command(cls=Command, topics={"Picture": "size"})
        ... @click.option("--size", type=int, help="Width of the picture.")
        ... def draw(size):
        ...     \"\"\"Draw.\"\"\"
        >>> print(draw.make_context("draw", []).get_help())
        Usage: draw [OPTIONS]
        <BLANKLINE>
          Draw.
        <BLANKLINE>
        Picture:
          --size INTEGER  Width of the picture.
        <BLANKLINE>
        Other options:
          -h, --help  Show this message and exit.
    """

    def __init__(self, *args: Any, topics: Mapping[str, str] | None = None, **options: Any):
        super().__init__(*args, **options)
        self.topics = topics or {}

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each topic, then all others."""
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option)]
        left = {p: row for p in options if (row := p.get_help_record(ctx)) is not None}
        for title, names in self.topics.items():
            listed = [p for name in names.split() for p in left if f"--{name}" in p.opts]
            with formatter.section(title):
                formatter.write_dl([left.pop(p) for p in listed])
        with formatter.section("Other options" if self.topics else "Options"):
            formatter.write_dl([*left.values()])


class Group(_Helpful, click.Group):
    """A group with ``-h`` and hints for commands that it does not have.

    Args:
        advice: Name that people try -> what to write.
    """

    command_class = Command

    def __init__(self, *args: Any, advice: Mapping[str, str] | None = None, **options: Any):
        super().__init__(*args, **options)
        self.advice = advice or {}

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names; see :meth:`click.Group.resolve_command`."""
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            known = self.list_commands(ctx)
            near = difflib.get_close_matches(name, known, n=1, cutoff=_NEAR)
            told = self.advice.get(name) or (f"{ctx.command_path} {near[0]}" if near else None)
            told = f"try {told}" if told else f"{ctx.command_path} -h lists all commands"
            raise OneLineUsageError(f"there is no command {name!r}; {told}", ctx)
        return super().resolve_command(ctx, args)


@contextmanager
def _in_one_line() -> Iterator[None]:
    try:
        yield
    except click.NoSuchOption as error:
        raise OneLineUsageError(_told(error), error.ctx) from error
    except click.UsageError as error:
        if type(error).show in (OneLineUsageError.show, _no_arguments()):
            raise
        where = "" if error.ctx is None else f"; see {error.ctx.command_path} -h"
        message = error.format_message().rstrip(".")
        raise OneLineUsageError(" ".join(message.split()) + where, error.ctx) from error


def _no_arguments() -> object:
    """How click tells that a group was called without a command: it prints the help."""
    return getattr(getattr(click.exceptions, "NoArgsIsHelpError", None), "show", None)


def _told(error: click.NoSuchOption) -> str:
    """That there is no such option, and which one is meant."""
    if error.ctx is None:
        return f"there is no option {error.option_name}"
    parameters = error.ctx.command.get_params(error.ctx)
    options = [name for p in parameters for name in (*p.opts, *p.secondary_opts)]
    return f"there is no option {error.option_name}; " + (
        _advice(error.option_name, [*options, *map(_argument, parameters)])
        or _nearest(error.option_name, options)
        or f"{error.ctx.command_path} -h lists all options"
    )


def _argument(parameter: click.Parameter) -> str:
    """Name of an argument as help shows it, without dots."""
    return (parameter.metavar or parameter.name or "").upper().rstrip(".")


def _advice(wrong: str, available: Sequence[str]) -> str | None:
    for names, needed, text in _ADVICE:
        if wrong.lstrip("-") in names.split() and needed in available:
            return text
    return None


def _nearest(wrong: str, options: Sequence[str]) -> str | None:
    near = difflib.get_close_matches(wrong, options, n=1, cutoff=_NEAR)
    return f"the nearest one is {near[0]}" if near else None
