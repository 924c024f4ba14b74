"""docs/architecture.md: its list of files is that of the tree, in the words of the files."""

import ast
import re

import pytest
from pages import DOCS, ROOT

TEXT = (DOCS / "architecture.md").read_text(encoding="utf-8")
FOLDERS = re.findall(r"^\*\*`([\w/]+)/`\*\*$", TEXT, re.M)


def rows(folder):
    part = TEXT.partition(f"**`{folder}/`**")[2].partition("**`")[0]
    return re.findall(r"^\| `(\w+\.py)` \| (.*) \|$", part, re.M)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_file_of_a_listed_room_is_named_by_its_first_line(folder):
    expected = []
    for path in sorted((ROOT / folder).glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        line = text.splitlines()[0].rstrip(".").replace("``", "`")
        expected.append((path.name, line))
    assert rows(folder) == expected


def test_paths_on_the_page_exist():
    for path in re.findall(r"`((?:edm2lite|training|tools|tests)/[\w/]+\.py)`", TEXT):
        assert (ROOT / path).is_file(), path
