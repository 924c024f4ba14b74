"""What a reader can count on: files and functions of a size that fits into a head."""

import ast

import pytest
from import_graph import files, module_name

LINES_OF_A_FILE = 300
LINES_OF_A_FUNCTION = 60


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_files_and_functions_are_short(path):
    """A function is counted without its docstring: an explanation may take the room it needs."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            explained = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            lines = node.end_lineno - node.lineno + 1 - explained
            assert lines <= LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"
