"""What docs/ema.md and docs/sweep.md show runs as written, and does what the pages say."""

import re
import shlex
import shutil
from pathlib import Path

from click.testing import CliRunner
from edm2lite.tools.edm2lite import main as edm2lite
from edm2lite.tools.reconstruct_ema import main as reconstruct_ema
from edm2lite.tools.sweep_ema import main as sweep_ema

from edm2lite.ema import list_snapshots

DOCS = Path(__file__).parent.parent / "docs"
TEXT = (DOCS / "ema.md").read_text(encoding="utf-8")


def test_the_examples_of_the_ema_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", TEXT, re.S)
    exec(compile(code[1], "docs/ema.md", "exec"), {})
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows] == ["0.03", "0.07", "0.13"]
    errors = [float(row[1]) for row in rows]
    # noise of standard deviation 1 at lr 0.05 leaves about 0.1 per weight in the raw iterates; the
    # longer the average the less
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.15
    assert all(float(row[-1]) < 0.02 for row in rows)
    assert len(list_snapshots(tmp_path / "runs/mine")) == 60
    lines = [
        line
        for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
        for line in block.splitlines()
        if "FOLDER" not in line  # the reader's own; tests/interop/test_ema_pytorch.py imports one
    ]
    assert len(lines) >= 5
    for line in lines:
        name, *words = shlex.split(line)
        command = {"edm2lite": edm2lite, "reconstruct_ema": reconstruct_ema}[name]
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 0, (line, result.output)


def test_the_commands_of_the_sweep_page_run(run_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, "runs/digits")
    page = (DOCS / "sweep.md").read_text(encoding="utf-8")
    lines = "".join(re.findall(r"```sh\n(.*?)```", page, re.S)).replace("\\\n", " ").splitlines()
    assert lines[0] == "edm2lite demo --out runs/digits"  # its own test runs it
    small = {"--num": "66", "--steps": "1", "--sigma-rel": "0.05,0.2", "--guidance": "1,1.5"}
    used = set()
    for line in [
        "edm2lite classifier --out runs/digits/classifier.safetensors",
        "edm2lite evaluate stats digits --extractor digits"
        " --weights runs/digits/classifier.safetensors --out runs/digits/reference.safetensors",
        *lines[1:],
    ]:
        name, *words = shlex.split(line.replace("12800", "640").replace("38400,64000", "640,1280"))
        for option, value in small.items():
            if option in words:
                words[words.index(option) + 1] = value
        used |= {word for word in words if word.startswith("--")}
        command = {"edm2lite": edm2lite, "sweep_ema": sweep_ema}[name]
        result = CliRunner().invoke(command, words)
        assert result.exit_code == 0, (line, result.output)
    assert used >= {"--search", "--guidance", "--groups", "--metric", "--at"}
    for folder in ("length", "guidance", "groups", "loss"):
        made = {path.name for path in (tmp_path / "sweeps" / folder).iterdir()}
        assert made >= {"sweep.csv", "sweep.png", "sweep.md", "sweep.html", "sweep.jsonl"}


def test_pictures_that_pages_show_are_there():
    for page in [*DOCS.glob("*.md"), DOCS.parent / "README.md"]:
        text = page.read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)", text):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name} shows {target}"
