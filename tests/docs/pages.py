"""The fenced blocks of README.md and docs/: found, parsed, and run."""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import click
import yaml
from click.testing import CliRunner
from tiny_run import tiny_config

from edm2lite.tools import edm2lite, generate, reconstruct_ema, sweep_ema
from edm2lite.training import __main__ as training
from edm2lite.training.config import load_config

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {path.relative_to(DOCS).as_posix(): path for path in sorted(DOCS.rglob("*.md"))}
PAGES["README.md"] = ROOT / "README.md"

COMMANDS = {
    "edm2lite": edm2lite.main,
    "reconstruct_ema": reconstruct_ema.main,
    "sweep_ema": sweep_ema.main,
}
MODULES = {
    "edm2lite.training": training.main,
    "edm2lite.tools.edm2lite": edm2lite.main,
    "edm2lite.tools.generate": generate.main,
    "edm2lite.tools.sweep_ema": sweep_ema.main,
}
PROGRAMS = (*COMMANDS, "python", "torchrun", "pip", "pytest", "git", "mkdocs")

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.S | re.M)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, or "" for plain text."""

    language: str
    text: str

    @property
    def name(self):
        """What a script or program is listed under: its first line that is no shebang."""
        return next(line for line in self.text.splitlines() if not line.startswith("#!"))

    @property
    def commands(self):
        """The commands of a block of shell lines, without comments and line breaks."""
        lines = [re.sub(r"(^|\s)#\s.*", "", x) for x in self.text.replace("\\\n", " ").splitlines()]
        parts = [part for line in lines if line.strip() for part in line.split(" && ")]
        return [" ".join(part.split()) for part in parts]


def blocks(page):
    text = PAGES[page].read_text(encoding="utf-8")
    return [Block(language, body) for _, language, body in _FENCE.findall(text)]


def prose(page):
    """A page without its fenced blocks."""
    return _FENCE.sub("", PAGES[page].read_text(encoding="utf-8"))


def invocation(line):
    """Which of our commands a line calls, with which words, and in how many processes."""
    words = shlex.split(line)
    if words[0] in COMMANDS:
        return COMMANDS[words[0]], words[1:], 1
    if words[0] in ("python", "torchrun") and "-m" in words:
        at = words.index("-m")
        sizes = [int(w.partition("=")[2]) for w in words[:at] if w.startswith("--nproc_per_node=")]
        if words[at + 1].startswith("edm2lite"):
            return MODULES[words[at + 1]], words[at + 2 :], sizes[0] if sizes else 1
    return None


def check(line):
    """Parse a command that is not run: its options, and their values, must be what it takes."""
    found = invocation(line)
    if found is not None:
        with patch.object(click.Command, "invoke", lambda self, context: None):
            result = CliRunner().invoke(found[0], found[1])
        assert result.exit_code == 0, (line, result.output)
    words = shlex.split(line)
    if words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), line


def run(line):
    """Run a command in the working directory; what it printed."""
    found = invocation(line)
    if found is None:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        environment = os.environ | {"HOME": os.getcwd(), "PATH": path}
        done = subprocess.run(
            ["bash", "-euc", line], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, (line, done.stderr)
        return done.stdout
    command, words, size = found
    ranks = [0] if "--dry-run" in words else range(size)
    for rank in reversed(ranks):  # one after the other; the first one waits for the others
        environment = {"RANK": str(rank), "WORLD_SIZE": str(size)} if size > 1 else {}
        result = CliRunner(env=environment).invoke(command, words)
        assert result.exit_code == 0, (line, result.output)
    return result.output


def is_file(block):
    """Whether the first line of a Python block names a file."""
    return block.language == "python" and re.fullmatch(r"# \w+\.py", block.name) is not None


def save(block):
    """Write a Python block to the file that its first line names."""
    Path(block.name.removeprefix("# ")).write_text(block.text, encoding="utf-8")


def configure(block):
    """A block of YAML: written, if a comment names its file; else part of a configuration."""
    if named := re.match(r"# ([\w-]+\.yaml)", block.text):
        Path(named[1]).write_text(block.text, encoding="utf-8")
    else:
        write_config("part.yaml", yaml.safe_load(block.text))
        load_config("part.yaml")


def write_config(path, sections):
    """The small digits configuration with other sections; ``{...}`` is what it has there."""
    whole = yaml.safe_load(tiny_config().to_yaml())
    for name, section in sections.items():
        if isinstance(section, dict):
            dots = [key for key, value in section.items() if value == {"...": None}]
            section = section | {key: whole[name][key] for key in dots}
        whole[name] = section
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(whole), encoding="utf-8")
