"""README.md and docs/: every command and example is run, or listed with the reason why not."""

import re
import subprocess
import textwrap

import click
import pytest
import test_examples
from page_needs import NEEDS, Page
from pages import (
    COMMANDS,
    DOCS,
    MODULES,
    PAGES,
    PROGRAMS,
    blocks,
    check,
    configure,
    is_file,
    prose,
    run,
    save,
)

LIST = (DOCS.parent / "tests/commands_not_run.txt").read_text(encoding="utf-8")
REASONS = set(re.findall(r"^#   (\w+)  ", LIST, re.M))
NOT_RUN = {
    command: reason
    for reason, command in re.findall(r"^(\w+): (.*)$", LIST, re.M)  # comments begin with "#"
}
THEIRS = {  # options of other tools that pages name
    "migrate.md": {
        "--batch-gpu", "--checkpoint", "--gnet", "--outstd", "--preset", "--snapshot", "--status",
    },
}  # fmt: skip
SLOW = ("network.md", "sweep.md")  # every preset is counted; every kind of sweep is made
LANGUAGES = {"sh", "bash", "python", "yaml", "", "text"}


def with_blocks():
    for name in PAGES:
        if blocks(name):
            yield pytest.param(name, marks=pytest.mark.slow if name in SLOW else ())


@pytest.mark.parametrize("name", list(with_blocks()))
def test_the_page_runs_as_written(name, request, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    page = Page(request, monkeypatch)
    course = NEEDS[name](page) if name in NEEDS else iter(())
    next(course, None)
    for block in blocks(name):
        if block.language == "sh":
            for line in block.commands:
                if line not in NOT_RUN and line not in test_examples.SHOWN:
                    page.printed[line] = run(page.small(line))
        elif is_file(block):
            save(block)
        elif block.language == "python" and not (block.name in NOT_RUN or is_excerpt(block)):
            exec(compile(block.text, name, "exec"), page.names)
            page.printed[block.name] = capsys.readouterr().out
        elif block.language == "yaml":
            configure(block)
    next(course, None)


def is_excerpt(block):
    """Whether a block is part of an example: tests/test_examples.py runs those, as pages say."""
    sources = [path.read_text(encoding="utf-8") for path in test_examples.EXAMPLES]
    forms = [textwrap.indent(block.text, " " * spaces) for spaces in (0, 4)]
    return any(form in source for form in forms for source in sources)


def shown():
    """Everything that pages offer to be typed or run."""
    for name in PAGES:
        for block in blocks(name):
            assert block.language in LANGUAGES, f"{name} has a block in {block.language!r}"
            if block.language == "sh":
                yield from block.commands
            elif block.language in ("python", "bash"):
                yield block.name


def test_what_is_not_run_is_on_the_pages_for_a_reason_that_is_explained():
    assert set(NOT_RUN.values()) == REASONS
    entries = [line for line in LIST.splitlines() if line and not line.startswith("#")]
    assert entries == [f"{reason}: {command}" for command, reason in NOT_RUN.items()]
    everything = list(shown())
    assert set(NOT_RUN) <= set(everything), "no page shows these any more"
    scripts = [b.name for name in PAGES for b in blocks(name) if b.language != "sh"]
    assert not [line for line in NOT_RUN if scripts.count(line) > 1], "name one block each"


@pytest.mark.parametrize("line", sorted(set(shown()) & set(NOT_RUN)))
def test_a_command_that_is_not_run_is_parsed(line):
    if not line.startswith("#"):
        check(line)


def test_scripts_are_listed_have_no_fault_of_syntax_and_call_commands_that_exist():
    for name in PAGES:
        for block in blocks(name):
            if block.language == "bash":
                assert block.name in NOT_RUN, "a script is not run; list it by this line"
                subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
                ours = re.findall(r"(python -m edm2lite.*|(?:edm2lite|\w+_ema) .*)", block.text)
                for line in ours:
                    check(line)


@pytest.mark.parametrize("name", PAGES)
def test_nothing_to_type_hides_in_a_block_of_another_kind(name):
    plain = "".join(b.text for b in blocks(name) if b.language in ("", "text"))
    indented = "\n".join(re.findall(r"^ {4}(.*)", prose(name), re.M))
    for line in f"{plain}\n{indented}".splitlines():
        assert line.split(" ")[0].strip("$ ") not in PROGRAMS, line


def options(command):
    """Of a command, and of the commands within it."""
    found = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            found |= options(command.get_command(context, name))
    return found | {"--help"}


def leaf(command, words):
    """The command that words lead to."""
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        context = click.Context(command)
        inner = command.get_command(context, words[0])
        if inner is None and "score" in command.list_commands(context):
            return command.get_command(context, "score")
        assert inner is not None, f"{command.name} has no command {words[0]}"
        command, words = inner, words[1:]
    return command


@pytest.mark.parametrize("name", PAGES)
def test_options_in_the_text_exist(name):
    text, theirs = prose(name), THEIRS.get(name, set())
    assert all(f"`{option}" in text for option in theirs), "no longer named"
    everywhere = theirs | {o for c in (*COMMANDS.values(), *MODULES.values()) for o in options(c)}
    for span in re.findall(r"`([^`]+)`", text):
        words = span.split()
        if not words or words[0] not in (*COMMANDS, "python", "torchrun"):
            named, known = words[:1], everywhere
        elif words[0] in COMMANDS:
            named, known = words, options(leaf(COMMANDS[words[0]], words[1:]))
        elif (module := span.partition("-m ")[2].split(" ")[0]) in MODULES:
            rest = span.partition(module)[2].split()
            named, known = rest, options(leaf(MODULES[module], rest))
        else:
            named, known = [], set()
        unknown = {w.partition("=")[0] for w in named if w.startswith("--")} - known
        assert not unknown, f"`{span}`: there is no {', '.join(unknown)}"


def test_the_page_of_recipes_names_those_that_exist():
    from edm2lite.sampling.recipes import RECIPES

    found = set()
    for name in re.findall(r"`((?:edm2-img|dit-xl)[\w-]*)`", PAGES["sampling.md"].read_text()):
        pattern = name.replace("SIZE", r"(xs|s|m|l|xl|xxl|s-uncond)")
        fits = {n for n in RECIPES if re.fullmatch(pattern.removesuffix("fid") + "(fid|dino)", n)}
        fits |= {name} & set(RECIPES)
        found |= fits
        assert fits or "2147483" in name, name
    assert found == set(RECIPES)


def test_the_options_of_the_loader_are_those_that_exist():
    from edm2lite.training.data import DataConfig

    named = set(re.findall(r"`data\.(\w+)`", PAGES["data.md"].read_text()))
    assert named == set(DataConfig.__dataclass_fields__)


def test_the_settings_that_may_change_within_a_run_are_those_of_the_page():
    from edm2lite.training.config import load_config
    from edm2lite.training.fields import changeable

    text = PAGES["training.md"].read_text()
    named = re.search(r"may change within it: (.*?)\.\s+Anything else", text, re.S)[1]
    assert set(re.findall(r"`([\w.]+)`", named)) == set(changeable(load_config("digits")))
