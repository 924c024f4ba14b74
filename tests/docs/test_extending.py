"""docs/extending.md: each recipe is short, and its commands do what the page says.

That the page runs as printed is in ``test_docs``.
"""

from pathlib import Path

import pytest
from pages import blocks, is_file

FILES = {block.name: block for block in blocks("extending.md") if is_file(block)}


@pytest.mark.parametrize("name", FILES)
def test_a_recipe_has_at_most_30_lines(name):
    lines = [line for line in FILES[name].text.splitlines() if line.strip()]
    assert len(lines) <= 30


def test_there_are_seven_recipes():
    text = (Path(__file__).parents[2] / "docs/extending.md").read_text(encoding="utf-8")
    assert (
        len(FILES)
        == sum(line.startswith("## ") and line[3].isdigit() for line in text.splitlines())
        == 7
    )
