"""Every example runs as written, and docs/integrations.md shows what it prints."""

import contextlib
import io
import re
import runpy
import shlex
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LANGUAGE_MODEL = ROOT / "examples" / "language_model.py"
"""The example of docs/decay.md, with tests of its own."""
EXAMPLES = sorted({*(ROOT / "examples").glob("*.py")} - {LANGUAGE_MODEL})
PAGE = (ROOT / "docs" / "integrations.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"```sh\n([^\n]+)\n```\n\n```text\n(.*?)```", PAGE, re.S))
"""Command -> what the page says it prints."""

pytestmark = [  # advice on how to set up Lightning's Trainer, no warning of anything wrong
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


def run(path: Path, *words: str) -> str:
    """What a script prints, run in this process."""
    printed, argv = io.StringIO(), sys.argv
    sys.argv = [str(path), *words]
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = argv
    return printed.getvalue()


def check_printed(printed: str, shown: str) -> None:
    """The same lines, words and counts; rounding elsewhere may lead training another way."""
    number = re.compile(r"\d+\.\d+|\d+e-\d+|\d+(?=%)")
    assert number.sub("#", printed).split() == number.sub("#", shown).split()
    for mine, theirs in zip(number.findall(printed), number.findall(shown), strict=True):
        tolerance = 10.0 if "e" in theirs else 1.5
        assert float(theirs) / tolerance <= float(mine) <= float(theirs) * tolerance, (mine, theirs)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_prints_what_the_page_shows(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing may lie about elsewhere than in RUN
    ((words, shown),) = [
        (shlex.split(command)[2:], printed)
        for command, printed in SHOWN.items()
        if command.startswith(f"python examples/{path.name} ")
    ]
    printed = run(path, *words)
    check_printed(printed, shown)
    raw = float(re.search(r"^ *raw +(\S+)", printed, re.M)[1])
    losses = re.findall(r"^(?:sigma_rel | *)0\.\d\d +(\d\.\d+)", printed, re.M)
    assert len(losses) >= 3 and all(float(loss) < raw for loss in losses), "averages win over raw"
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_shows(path, capsys):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80
    assert lines[0].startswith('"""') and f"python examples/{path.name} RUN" in lines[2]
    with pytest.raises(SystemExit) as end:
        run(path, "--help")
    assert end.value.code == 0


def test_the_code_on_the_page_is_that_of_the_examples_or_runs(tmp_path, monkeypatch, capsys):
    sources = [path.read_text(encoding="utf-8") for path in EXAMPLES]
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 6
    own = []
    for block in blocks:
        indented = [textwrap.indent(block, " " * indent) for indent in (0, 4)]
        if not any(text in source for text in indented for source in sources):
            own.append(block)
    (block,) = own
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "integrations.md", "exec"), {})
    assert re.fullmatch(r"mean of the last 40 steps, to within \de-0\d\n", capsys.readouterr().out)


def test_four_lines_are_new_in_a_loop_and_change_nothing_in_it(tmp_path, monkeypatch):
    source = (ROOT / "examples" / "plain_loop.py").read_text(encoding="utf-8")
    marked = re.compile(r"^.*# line (\d).*\n", re.M)
    assert marked.findall(source) == ["1", "2", "3", "4"]
    without = marked.sub("", source)
    assert "ema" not in re.sub(r"(?s)^.*?\n\n\n|    for result in.*", "", without)
    script = tmp_path / "loop.py"
    script.write_text(without)
    printed = io.StringIO()
    monkeypatch.setattr(sys, "argv", ["loop.py", "runs/plain"])
    with contextlib.redirect_stdout(printed), pytest.raises(NameError, match="reconstruct"):
        runpy.run_path(str(script), run_name="__main__")
    shown = SHOWN["python examples/plain_loop.py runs/plain"].splitlines(keepends=True)
    check_printed(printed.getvalue(), "".join(shown[:3]))


@pytest.mark.slow
def test_the_accelerate_example_runs_sharded_in_two_processes(tmp_path):
    (command,) = [command for command in SHOWN if command.startswith("torchrun")]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = command.replace("examples/", f"{ROOT}/examples/").split()[1:]
    launch = [sys.executable, "-m", "torch.distributed.run", f"--master_port={port}", *words]
    done = subprocess.run(launch, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_printed(done.stdout, SHOWN[command])
