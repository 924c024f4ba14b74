"""What all commands use: types of options, one-line errors, progress bars, tables."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import click

from edm2lite import processes
from edm2lite.dtypes import DTYPES
from edm2lite.kinds import Kinds, plugin
from edm2lite.messages import one_line
from edm2lite.units import (
    parse_amount,
    parse_floats,
    parse_interval,
    parse_range,
    parse_seeds,
    parse_whole,
)

T = TypeVar("T")

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # click 8.1 to 8.2 have no type argument
    _ParamType = click.ParamType


PLUGINS = "EDM2LITE_PLUGINS"
"""Environment variable: plugins that every command imports, their names separated by commas."""


class _Parsed(_ParamType):
    """An option type made from a function that parses text, and raises ValueError if it cannot."""

    def __init__(self, name: str, parse: Callable[[str], Any]):
        self.name, self._parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _count(text: str) -> int:
    value = parse_whole(text)
    if value < 1:
        raise ValueError(f"{text!r} must be at least 1, as in 50000, 10k, 64Ki, 1e6 or 300G")
    return value


def _size(text: str) -> tuple[int, int]:
    height, x, width = text.partition("x")
    if not (x and height.isdigit() and width.isdigit()):
        raise ValueError(f"{text!r} must be height and width, as in 64x96")
    return int(height), int(width)


def _guide(text: str) -> str:
    return "unconditional" if text == "unlabelled" else text  # its name in version 0.1


DTYPE = click.Choice(DTYPES)
AMOUNT = _Parsed("amount", parse_amount)
AMOUNTS = _Parsed("list", lambda text: [parse_amount(part) for part in text.split(",")])
COUNT = _Parsed("count", _count)
DECAYS = _Parsed("list", lambda text: import_module("edm2lite.ema.decays").parse_decays(text))
COUNTS = _Parsed("list", lambda text: [_count(part) for part in text.split(",")])
FLOATS = _Parsed("list", parse_floats)
GUIDE = _Parsed("model", _guide)
INTERVAL = _Parsed("low,high|first-last", parse_interval)
RANGE = _Parsed("low:high", parse_range)
SIZE = _Parsed("HxW", _size)
SEEDS = _Parsed("seeds", parse_seeds)


def kind_option(kinds: Kinds[Any]) -> dict[str, Any]:
    """Type and metavar of an option that takes one of several names or ``module:name``.

    Nothing is imported to check the value.

    Args:
        kinds: The names.
    """

    def parse(text: str) -> str:
        if text not in kinds and ":" not in text:
            names = ", ".join(kinds)
            raise ValueError(f"{text!r} must be one of {names}, or module:name of your own")
        return text

    return {"type": _Parsed(kinds.what, parse), "metavar": "|".join([*kinds, "MODULE:NAME"])}


class _Module(_Parsed):
    """The name of a module; an environment variable separates several by commas."""

    envvar_list_splitter = ","


def plugin_option(command: Callable[..., None]) -> Callable[..., None]:
    """Add ``--plugin``: modules of the user's to import before anything is loaded.

    Files of models name their networks and encoders, and cannot have them imported; a plugin is
    imported because the person names it.
    """
    return click.option(
        "--plugin",
        type=_Module("module", str.strip),
        multiple=True,
        metavar="MODULE",
        envvar=PLUGINS,
        show_envvar=True,
        is_eager=True,
        expose_value=False,
        callback=_import_plugins,
        help="Import a module of yours first, with a network for example; repeatable.",
    )(command)


def _import_plugins(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> None:
    for name in names:
        try:
            with processes.interruptible():
                plugin(name)
        except KeyboardInterrupt:
            raise Interrupted from None
        except ModuleNotFoundError as error:
            raise click.ClickException(
                f"plugin {name} must be importable, there is no module {error.name}; run the"
                " command in its folder, add the folder to PYTHONPATH, or install it"
            ) from error


class Interrupted(click.ClickException):
    """Ctrl-C, with the exit code that a shell gives it."""

    exit_code = 130

    def __init__(self) -> None:
        super().__init__("interrupted; the same command continues from what is on disk")


def user_errors(command: Callable[..., None]) -> Callable[..., None]:
    """A decorator: errors that the user can fix end in one line and exit code 1, Ctrl-C in 130.

    Args:
        command: Function of a click command.
    """

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        processes.watch_launcher()
        try:
            with processes.interruptible(), _messages_above_bars():
                command(*args, **kwargs)
        except (ValueError, FileNotFoundError, ImportError) as error:
            raise click.ClickException(one_line(error)) from error
        except BrokenPipeError:  # `| head` has read enough, and click ends quietly
            raise
        except OSError as error:
            raise click.ClickException(f"{error.strerror}: {error.filename or ''}") from error
        except (MemoryError, RuntimeError) as error:
            if not _is_of_memory(error):
                raise
            what = one_line(error, 200) or type(error).__name__
            raise click.ClickException(
                f"memory must suffice, and does not ({what}); use smaller batches, or lift the"
                " limit of this process (ulimit -v)"
            ) from error
        except KeyboardInterrupt:
            raise Interrupted from None

    return wrapper


@contextmanager
def _messages_above_bars() -> Iterator[None]:
    """Let messages of loggers, and warnings, have lines of their own where a bar is drawn."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    logging.captureWarnings(True)
    try:
        with logging_redirect_tqdm():
            yield
    finally:
        logging.captureWarnings(False)


def _is_of_memory(error: Exception) -> bool:
    """Whether memory ran out: of Python, of NumPy, of torch on a CPU or a GPU."""
    signs = (
        "not enough memory",
        "out of memory",
        "can't allocate memory",
        "can't start new thread",
    )
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in signs)


def progress(items: Iterable[T] | None = None, **options: Any) -> Any:
    """A tqdm bar on stderr, updated twice a second on a terminal and every 10 s in a log file.

    Args:
        items: Items to iterate over; None for a bar that is moved by its ``update``.
        options: Further arguments of tqdm.
    """
    from tqdm import tqdm  # takes half of the time of --help

    options.setdefault("mininterval", 0.5 if sys.stderr.isatty() else 10)
    return tqdm(items, dynamic_ncols=True, **options)


def table(columns: Mapping[str, str], rows: Iterable[Sequence[Any]]) -> str:
    """A table as aligned text: a header line, and one line per row.

    Args:
        columns: Title -> format of the values below it, such as ``.1e``. With an empty format the
            column is text and aligned left.
        rows: Values in the order of the columns.
    """
    cells = [list(columns)] + [
        [format(value, kind) for value, kind in zip(row, columns.values(), strict=True)]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    sides = [">" if kind else "<" for kind in columns.values()]
    return "\n".join(
        "  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)).rstrip()
        for line in cells
    )


class CountBar:
    """A progress bar that is called with the number done and the total.

    Used in ``with``, it ends its line on errors too.
    """

    _options: ClassVar[dict[str, Any]] = {}

    def __init__(self, description: str):
        self._description = description
        self._bar: Any = None

    def __call__(self, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = progress(total=total, desc=self._description, **self._options)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()

    def __enter__(self) -> CountBar:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()


class ImageBar(CountBar):
    """A progress bar that is called with the images done and the total."""

    _options: ClassVar[dict[str, Any]] = {"unit": "img"}


class ByteBar(CountBar):
    """A progress bar that is called with the bytes done and the total, and shows throughput."""

    _options: ClassVar[dict[str, Any]] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024}


class FileBar(CountBar):
    """A progress bar over files, in one or several rounds; not shown if a round is short."""

    _options: ClassVar[dict[str, Any]] = {"unit": "file", "delay": 2}

    def __call__(self, done: int, total: int) -> None:
        super().__call__(done, total)
        if done >= total:
            self._bar = None
