"""The notebook runs from top to bottom, on a smaller run; no Jupyter is needed for that."""

import ast
import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import edm2lite
from edm2lite.ema import list_snapshots

ROOT = Path(__file__).parents[2]
NOTEBOOK = json.loads((ROOT / "examples/first_run.ipynb").read_text(encoding="utf-8"))
CELLS = ["".join(c["source"]) for c in NOTEBOOK["cells"] if c["cell_type"] == "code"]
SMALLER = {
    "model_channels=32": "model_channels=16",
    '"net.': '"net.backbone.head_channels=16", "net.',
    "total_nimg=15360": "total_nimg=1280",
    "snapshot_nimg=384": "snapshot_nimg=64",
    "num=400": "num=64",
}


def result_of(cell, names):
    """Run a cell; the value of its last line, which a notebook shows."""
    *body, last = ast.parse(cell).body
    if not isinstance(last, ast.Expr):
        exec(compile(cell, "cell", "exec"), names)
        return None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_runs_and_shows_images(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names, shown = {}, []
    for cell in CELLS:
        for long, short in SMALLER.items():
            cell = cell.replace(long, short)
        shown.append(result_of(cell, names))
    pictures = [value for value in shown if isinstance(value, Image.Image)]
    assert len(pictures) == 2 and pictures[0].tobytes() != pictures[1].tobytes()
    assert len(list_snapshots("runs/first")) == 40, "20 times of two lengths"
    best = names["sweep"].best_average.sigma_rel
    assert torch.equal(names["images"], edm2lite.generate(
        f"runs/first@sigma_rel={best}", range(20), classes="all"
    ))  # fmt: skip
    assert Path("runs/first/sweep.html").is_file()
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed[:4]] == ["3%", "8%", "15%", "20%"]
    *_, last, short, long = [float(line.split()[-4]) for line in printed[-3:]]
    # white noise of the gradients leaves the less, the more steps an average has
    assert long < short < last


def test_the_notebook_is_plain_and_has_no_outputs_that_could_grow_old():
    assert NOTEBOOK["nbformat"] == 4 and CELLS
    assert all(not c.get("outputs") for c in NOTEBOOK["cells"])
    assert all(len({*c}) >= 4 and c["id"] for c in NOTEBOOK["cells"])
    assert all(change in "".join(CELLS) for change in SMALLER), "no longer there"
    assert not [line for line in "\n".join(CELLS).splitlines() if line.startswith(("%", "!"))]


@pytest.mark.parametrize("cell", CELLS, ids=range(len(CELLS)))
def test_lines_of_the_notebook_fit_a_page(cell):
    assert all(len(line) <= 110 for line in cell.splitlines())
