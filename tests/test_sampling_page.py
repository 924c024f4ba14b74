"""What docs/sampling.md shows runs as written."""

import re
import shlex
from pathlib import Path

import torch
from click.testing import CliRunner
from edm2lite.tools.edm2lite import main as edm2lite

from edm2lite.dataset import open_dataset
from edm2lite.recipes import RECIPES

TEXT = (Path(__file__).parent.parent / "docs/sampling.md").read_text(encoding="utf-8")


def test_the_examples_of_the_sampling_page_run(run_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/digits").symlink_to(run_dir)
    first, second = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    image = torch.from_numpy(open_dataset("digits").images([5]))
    names = {"image": image}
    exec(compile(first, "docs/sampling.md", "exec"), names)
    assert len(capsys.readouterr().out.splitlines()) == 32
    assert names["image"].dtype == torch.uint8 and names["image"].shape == (1, 1, 8, 8)
    names["image"] = image
    exec(compile(second, "docs/sampling.md", "exec"), names)
    assert torch.equal(names["filled"][:, :, 4:], names["x"][:, :, 4:])
    assert not torch.equal(names["filled"][:, :, :4], names["x"][:, :, :4])
    lines = [
        line
        for block in re.findall(r"```sh\n(.*?)```", TEXT, re.S)
        for line in block.replace("\\\n", " ").splitlines()
        if "--recipe " not in line and " toy " not in line  # released weights; takes a minute
    ]
    assert len(lines) == 3
    for line in lines:
        # the run of the tests is short, and has no snapshot at the time that the page shows
        words = shlex.split(line.replace("nimg=12800", "nimg=640"))[1:]
        result = CliRunner().invoke(edm2lite, words)
        assert result.exit_code == 0, (line, result.output)


def test_the_page_names_kinds_of_recipes_that_exist():
    named = set()
    for name in re.findall(r"`(edm2-img[\w-]*)`", TEXT):
        pattern = name.replace("SIZE", r"(xs|s|m|l|xl|xxl|s-uncond)")
        found = {n for n in RECIPES if re.fullmatch(pattern.removesuffix("fid") + "(fid|dino)", n)}
        named |= found
        assert found or "2147483" in name, name
    assert named == set(RECIPES)
