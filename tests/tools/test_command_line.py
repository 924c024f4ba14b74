"""What all commands have in common, as docs/commands.md tells it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from pages import COMMANDS, PAGES, check

from edm2lite.tools._cli import user_errors
from edm2lite.training import __main__ as training

PAGE = PAGES["commands.md"].read_text(encoding="utf-8")
SCRIPTS = Path(sys.executable).parent


def leaves(name, command):
    """Every command without commands below it, by its whole name."""
    if not isinstance(command, click.Group):
        yield name, command
        return
    context = click.Context(command)
    for inner in command.list_commands(context):
        yield from leaves(f"{name} {inner}", command.get_command(context, inner))


ALL = {}
for _name, _command in COMMANDS.items():
    ALL |= leaves(_name, _command)
OTHER_NAMES = {
    "python -m edm2lite.training": "edm2lite train",
    "reconstruct_ema": "edm2lite reconstruct",
    "sweep_ema": "edm2lite sweep",
}


@pytest.mark.parametrize("name", ALL)
def test_help_has_an_example_that_is_understood(name):
    text = CliRunner().invoke(ALL[name], ["--help"], terminal_width=200).output
    examples = re.search(r"\n  Examples?:\n(.*?)\n\n", text.replace("\\\n", " "), re.S)
    assert examples, text
    lines = [" ".join(line.split()) for line in examples[1].splitlines()]
    for line in lines:
        check(line)
    name = OTHER_NAMES.get(name, name)
    assert any(line.startswith(name.removesuffix(" score")) for line in lines), lines


@pytest.mark.parametrize("name", ALL)
def test_options_are_in_the_topics_of_a_command_that_has_some(name):
    command = ALL[name]
    titles = dict.fromkeys(word for names in command.topics.values() for word in names.split())
    options = [p for p in command.params if isinstance(p, click.Option)]
    known = [option.removeprefix("--") for p in options for option in p.opts]
    assert titles.keys() <= set(known)
    if titles:  # the others are those of many commands
        left = [
            p.opts for p in options if not titles.keys() & {o.removeprefix("--") for o in p.opts}
        ]
        assert left in ([], [["--plugin"]], [["--version"]], [["--plugin"], ["--version"]])
    else:
        assert len(options) < 12, "give the command topics"


@pytest.mark.parametrize("name", [*ALL, "edm2lite", "edm2lite dataset", "edm2lite evaluate"])
def test_h_is_help(name):
    words = [*name.removeprefix("edm2lite").split(), "-h"]
    command = ALL.get(name, COMMANDS["edm2lite"])
    result = CliRunner().invoke(*((command, ["-h"]) if name in ALL else (command, words)))
    assert result.exit_code == 0 and result.output.startswith("Usage: ")


def test_other_names_are_the_same_commands():
    edm2lite, context = COMMANDS["edm2lite"], click.Context(COMMANDS["edm2lite"])
    for other, name in OTHER_NAMES.items():
        command = edm2lite.get_command(context, name.split()[1])
        assert command is (training.main if "training" in other else COMMANDS[other])
    assert edm2lite.get_command(context, "sample") is ALL["edm2lite generate"]
    module = [sys.executable, "-m", "edm2lite", "sample", "--version"]
    done = subprocess.run([*module[:-2], "--version"], capture_output=True, text=True)
    assert done.stdout.startswith("edm2lite, version"), done.stderr


def test_the_page_lists_every_command_and_no_other():
    listed = re.findall(r"^\| `([^`]+)`(?:, `([^`]+)`)? \| ", PAGE.split("## ")[0], re.M)
    assert sorted(name for row in listed for name in row if name) == sorted(
        [*ALL, "python -m edm2lite.training", "edm2lite sample"]
    )


@pytest.mark.parametrize("command", [training.main, *COMMANDS.values()])
def test_every_program_tells_its_version(command):
    result = CliRunner().invoke(command, ["--version"])
    assert result.exit_code == 0 and re.search(r"version \d+\.\d+\.\d+", result.output)


def ended_by(error):
    """Exit code and output of a command in which this was raised."""

    @click.command()
    @user_errors
    def command():
        raise error

    result = CliRunner().invoke(command)
    return result.exit_code, result.output


def test_exit_codes_are_those_of_the_page(monkeypatch, tmp_path):
    assert ended_by(ValueError("a must be b,\ngot c")) == (1, "Error: a must be b, got c\n")
    assert ended_by(OSError(28, "No space left on device", "x")) == (
        1,
        "Error: No space left on device: x\n",
    )
    assert ended_by(KeyboardInterrupt())[0] == 130
    assert ended_by(BrokenPipeError(32, "Broken pipe")) == (1, "")  # `| head` has read enough
    assert ended_by(click.UsageError("a and b"))[0] == 2

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("edm2lite.training.config.load_config", interrupted)
    result = CliRunner().invoke(training.main, ["digits", "--out", str(tmp_path / "run")])
    assert result.exit_code == 130 and "no checkpoint in" in result.output
    codes = re.findall(r"^\| (\d+) \| ", PAGE, re.M)
    assert codes == ["0", "1", "2", "130"]


@pytest.mark.parametrize(
    "words, completed",
    [
        ("edm2lite pl", "play plan plot plot-objective"),
        ("edm2lite dataset co", "convert"),
        ("edm2lite evaluate score --me", "--metrics"),
        ("reconstruct_ema --sigma", "--sigma-rel"),
        ("sweep_ema --gui", "--guidance --guide --guide-sigma-rel"),
    ],
)
def test_bash_completes(words, completed, tmp_path):
    (tmp_path / "script").write_text("".join(sourced("bash")))
    program, *_, last = words.split()
    text = f"""
        . ./script
        COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _{program}_completion {program} {last!r}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PATH": f"{SCRIPTS}:/usr/bin:/bin"},
    )  # fmt: skip
    assert done.stdout.split() == completed.split(), done.stderr


def sourced(shell):
    """The completion scripts of a shell for all three commands."""
    for name in COMMANDS:
        environment = {f"_{name.upper()}_COMPLETE": f"{shell}_source"}
        yield CliRunner(env=environment).invoke(COMMANDS[name], prog_name=name).output


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_are_made_and_valid_where_the_shell_is_installed(shell):
    for name, script in zip(COMMANDS, sourced(shell), strict=True):
        assert f"_{name.upper()}_COMPLETE={shell}_complete" in script
        if shutil.which(shell):
            subprocess.run([shell, "-n"], input=script, text=True, check=True)


def test_completion_does_not_load_what_it_completes():
    code = (
        "import os, sys\n"
        "os.environ |= {'_EDM2LITE_COMPLETE': 'bash_complete', 'COMP_WORDS': 'edm2lite ',"
        " 'COMP_CWORD': '1'}\n"
        "from edm2lite.tools.edm2lite import main\n"
        "try:\n    main(prog_name='edm2lite')\n"
        "except SystemExit:\n    pass\n"
        "sys.exit(bool({'torch', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and "plain,generate" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["sweep_ema", "edm2lite evaluate score"])
def test_the_number_of_images_can_be_given_under_torchrun(name, capsys):
    """torchrun takes words like --num for abbreviations of its own options."""
    from torch.distributed.run import parse_args

    options = {word for parameter in ALL[name].params for word in parameter.opts}
    assert {"--images", "--num"} <= options
    command = ["-m", "edm2lite.tools.any", "RUN"]
    assert parse_args([*command, "--images", "300"]).training_script_args == [
        "RUN",
        "--images",
        "300",
    ]
    with pytest.raises(SystemExit):
        parse_args([*command, "--num", "300"])
    assert "ambiguous option: --num" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, is_one_line",
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory\nat 0x1"), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (RuntimeError("shapes cannot be multiplied"), False),  # a mistake of ours keeps its place
    ],
)
def test_a_lack_of_memory_is_one_line(error, is_one_line):
    @click.command()
    @user_errors
    def command():
        raise error

    result = CliRunner().invoke(command)
    if is_one_line:
        assert result.exit_code == 1 and result.output.startswith("Error: memory must suffice")
        assert len(result.output.splitlines()) == 1
    else:
        assert result.exception is error
