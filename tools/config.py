"""``edm2lite config``: the shipped configurations, and what their keys mean."""

from __future__ import annotations

import re
from importlib import resources

import click

from edm2lite.config_file.source import read_yaml, shipped
from edm2lite.messages.commands import Command
from edm2lite.version import __version__

from ._cli import table, user_errors

_TITLE = """A configuration of edm2lite {version}: {summary}
Train it by `edm2lite train FILE --out RUN`, where FILE is this text. Keys that are left out have
their defaults. Numbers of images, steps and the like may be written 10k, 64Ki, 1.5M or 8Mi.
"""


@click.command(cls=Command)
@click.argument("source", metavar="[CONFIG]", required=False)
@click.option("--template", is_flag=True, help="Write a sentence above each key.")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Set a value of the configuration, e.g. optim.ref_lr=0.005. Repeatable.",
)
@user_errors
def main(source: str | None, template: bool, overrides: tuple[str, ...]) -> None:
    """List the shipped configurations, or print CONFIG with all of its values as YAML.

    CONFIG is a shipped configuration, a YAML file, or a run. What is printed can be edited and
    trained. DATASET stands for the training data where CONFIG names none.

    \b
    Examples:
      edm2lite config
      edm2lite config digits --template
      edm2lite config edm2-img64-s --template --set data.source=photos.zip
    """
    if source is None:
        if template or overrides:
            raise click.UsageError("give the CONFIG to print; edm2lite config lists those shipped")
        columns = {"name": "", "network": "", "parameters": ">", "images": "", "made for": ""}
        click.echo(table(columns, map(_row, shipped())))
        return
    from edm2lite.config_file.comments import commented
    from edm2lite.training.config import load_config

    if (read_yaml(source).get("data") or {}).get("source") is None:
        overrides = ("data.source=DATASET", *overrides)
    config = load_config(source, overrides)
    title = _TITLE.format(version=__version__, summary=f"{source}.")
    click.echo(commented(config, title) if template else config.to_yaml(), nl=False)


def _row(name: str) -> list[str]:
    """What the list says of a shipped configuration, from its values and the comment it has."""
    network = read_yaml(name)["net"]["backbone"]
    size = re.search(r"(\d[\d ]*\d) parameters", _header(name))
    channels, side = network["img_channels"], network["img_resolution"]
    return [
        name,
        str(network.get("kind", "unet")),
        size[1] if size else "",
        f"{side} x {side} x {channels}",
        _device(name),
    ]


def _device(name: str) -> str:
    """The hardware that a configuration, or the one that it builds upon, is made for."""
    header = _header(name)
    if stated := re.search(r"^# hardware: ([^;,\n]+)", header, re.M):
        return stated[1]
    if stated := re.search(r"^# paper: +(\d+ [\w-]+GB)", header, re.M):
        return stated[1]
    base = re.search(r"^base: (\S+)", _text(name), re.M)
    return _device(base[1]) if base else "GPUs"


def _header(name: str) -> str:
    return "".join(line for line in _text(name).splitlines(True) if line.startswith("#"))


def _text(name: str) -> str:
    return (resources.files("edm2lite.configs") / f"{name}.yaml").read_text(encoding="utf-8")


if __name__ == "__main__":
    main()
