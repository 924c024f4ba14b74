"""``benchmarks/gpu_check.py`` runs, whatever happens to one of its sections."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

HERE = Path(__file__).parents[1] / "benchmarks"
IN_GROUPS = ("ddp", "fsdp")  # a process can join one group


@pytest.fixture(scope="module")
def check():
    """The module; those of its folder come last, since one is named as a package is."""
    sys.path.append(str(HERE))
    yield importlib.import_module("gpu_check")
    sys.path.remove(str(HERE))


@pytest.fixture(autouse=True)
def _flags():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before


SECTIONS = (
    "correctness", "ceilings", "train_xs", "train_s", "waits", "trainer", "sampling", "vae",
    "generate", "png", "tail", "convolutions", "upsampling",
)  # fmt: skip


@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_gives_rows_that_json_can_hold(check, section):
    rows = list(check.rows_of(section, "cpu", tiny=True))
    assert rows and not any("skipped" in row for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    assert all(row.get("ok", True) for row in rows)
    assert all(check.text(row) for row in rows)


@pytest.mark.slow
def test_processes_of_one_rank_train_the_same_weights(check, tmp_path):
    out = tmp_path / "found.json"
    options = ["--sections", ",".join(IN_GROUPS), "--tiny", "--device", "cpu", "--out", str(out)]
    result = CliRunner().invoke(check.main, options)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text())["sections"]
    assert {name: rows[0]["ok"] for name, rows in found.items()} == dict.fromkeys(IN_GROUPS, True)
    assert {*SECTIONS, *IN_GROUPS} == {*check.SECTIONS}


def test_a_section_that_fails_or_takes_too_long_costs_one_line(check, tmp_path):
    broken, endless = tmp_path / "broken.py", tmp_path / "endless.py"
    start = "import subprocess, sys\nprint('{\"found\": 1}', flush=True)\n"
    broken.write_text(start + "raise ValueError('out of luck')\n")
    child = "import time; print('{\"late\": 1}', flush=True); time.sleep(600)"
    endless.write_text(start + f"subprocess.run([sys.executable, '-c', {child!r}])\n")
    rows = list(check.measured("png", "cpu", tiny=True, limit=60, module=broken))
    assert rows == [{"found": 1}, {"failed": "ValueError: out of luck"}]
    rows = list(check.measured("png", "cpu", tiny=True, limit=3, module=endless))
    assert rows[0] == {"found": 1} and rows[-1] == {"failed": "stopped after 3 s"}


def test_what_is_missing_is_said(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    (row,) = check.rows_of("vae", "cpu", tiny=True)
    assert row == {"skipped": "needs the package diffusers"}
    result = CliRunner().invoke(check.main, ["--sections", "first,speed"])
    assert result.exit_code == 2 or not torch.cuda.is_available()
    with pytest.raises(Exception, match="got speed"):
        check.chosen("first,speed")
    assert check.chosen("second,png")[-2:] == ["upsampling", "png"]


def test_the_first_half_needs_little():
    """Training images, files of images and configurations are for the second one."""
    modules = "gpu_check, gpu_correctness, gpu_speed"
    code = f"import sys, {modules}; print(*(name.partition('.')[0] for name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=HERE, capture_output=True, text=True, check=True
    )
    absent = {"pydantic", "yaml", "PIL", "diffusers", "transformers", "matplotlib", "sklearn"}
    assert not absent & {*done.stdout.split()}
