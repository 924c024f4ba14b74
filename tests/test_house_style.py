"""Sizes of files and functions, and that a commit, .ci/run and the forge check the same things."""

import ast
import re

import pytest
import yaml
from import_graph import ROOT, files, module_name

LINES_OF_A_FILE = 300
LINES_OF_A_FUNCTION = 60


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_files_and_functions_are_short(path):
    """A function is counted without its docstring: an explanation may take the room it needs."""
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= LINES_OF_A_FILE
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            explained = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
            lines = node.end_lineno - node.lineno + 1 - explained
            assert lines <= LINES_OF_A_FUNCTION, f"{node.name} has {lines} lines"


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_every_check_of_a_commit_is_one_of_ci_too():
    (repository,) = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    checks = [hook["entry"].removesuffix(" --force-exclude") for hook in repository["hooks"]]
    assert len(checks) == 4
    lines = text(".ci/run").splitlines()
    for check in checks:
        assert any(line.startswith(check) for line in lines), f"{check} is missing in .ci/run"
    workflow = yaml.safe_load(text(".github/workflows/test.yml"))
    runs = [step.get("run", "") for step in workflow["jobs"]["lint"]["steps"]]
    assert any(run.startswith("pre-commit run --all-files") for run in runs)


def test_the_matrix_is_what_the_package_states():
    """Python versions of the classifiers, and the oldest torch of the requirements."""
    matrix = yaml.safe_load(text(".github/workflows/test.yml"))["jobs"]["test"]["strategy"][
        "matrix"
    ]
    setup = text("setup.py")
    stated = re.findall(r"Programming Language :: Python :: (3\.\d+)", setup)
    assert matrix["python"] == stated == ["3.10", "3.11", "3.12", "3.13"]
    assert f'"torch>={matrix["torch"][0].removesuffix(".*")}"' in setup


def test_the_citation_is_complete():
    """The keys that CITATION.cff 1.2.0 requires; the version is stated in one place only."""
    citation = yaml.safe_load(text("CITATION.cff"))
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert "version" not in citation
    numbers = re.findall(r"arxiv\.org/abs/(\d+\.\d+)", text("CITATION.cff"))
    assert sorted(numbers) == ["2206.00364", "2312.02696"]
    assert all({"type", "title", "authors"} <= paper.keys() for paper in citation["references"])
