"""Examples in docstrings run as printed, and the public names that must have one do.

An example that shows a NumPy scalar converts it with ``float()`` or formats it: NumPy 1 and 2 print
scalars differently. One that needs a folder takes it from ``tempfile``.
"""

import ast
import doctest
import importlib
import importlib.util
import inspect
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
FILES = sorted(
    [*ROOT.glob("edm2lite/**/*.py"), *ROOT.glob("training/*.py"), *ROOT.glob("tools/*.py")]
)

# Every name in ``__all__`` of these has an example; where a module has no ``__all__``, every
# public function and class that is defined in it.
DOCUMENTED = (
    "edm2lite",
    "edm2lite.diffusion",
    "edm2lite.metrics",
    "edm2lite.network",
    "edm2lite.atomic",
    "edm2lite.claim",
    "edm2lite.dataset",
    "edm2lite.dataset.buckets",
    "edm2lite.dataset.subset",
    "edm2lite.dtypes",
    "edm2lite.ema",
    "edm2lite.ema.doctor",
    "edm2lite.ema.planning",
    "edm2lite.ema.thinning",
    "edm2lite.ema.verification",
    "edm2lite.image_grid",
    "edm2lite.integrations.lightning",
    "edm2lite.integrations.lora",
    "edm2lite.integrations.recorder",
    "edm2lite.integrations.transformers",
    "edm2lite.interop.edm2",
    "edm2lite.interop.ema_pytorch",
    "edm2lite.interop.formats",
    "edm2lite.kinds",
    "edm2lite.lazy",
    "edm2lite.messages",
    "edm2lite.network.adapters",
    "edm2lite.network.additions",
    "edm2lite.plotting.figure",
    "edm2lite.plotting.images",
    "edm2lite.plotting.lengths",
    "edm2lite.plotting.magnitudes",
    "edm2lite.plotting.run_curves",
    "edm2lite.models",
    "edm2lite.models.adapters",
    "edm2lite.models.encoders",
    "edm2lite.models.model_card",
    "edm2lite.sampling",
    "edm2lite.sampling.condition_table",
    "edm2lite.sampling.conditions",
    "edm2lite.seeding",
    "edm2lite.text",
    "edm2lite.text.encoder",
    "edm2lite.text.model",
    "edm2lite.text.statistics",
    "edm2lite.tensorfile",
    "edm2lite.tensorheader",
    "edm2lite.threads",
    "edm2lite.training",
    "edm2lite.training.fields",
    "edm2lite.toy.density",
    "edm2lite.toy.model",
    "edm2lite.units",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts if parts[0] == "edm2lite" else ("edm2lite", *parts))
    return name.removesuffix(".__init__")


def imported(name):
    """The module; the test is skipped if the module asks for an extra that is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        if "edm2lite[" not in str(error):  # the package's own message names the extra
            raise
        pytest.skip(str(error))


def missing_package(test):
    """A package that an example imports and that is not installed, an extra; None if there is none.

    Only what is not our own counts: a module of ours that is not there is a mistake.
    """
    for example in test.examples:
        for node in ast.walk(ast.parse(example.source)):
            if isinstance(node, ast.Import | ast.ImportFrom):
                module = getattr(node, "module", None) or node.names[0].name
                package = module.partition(".")[0]
                if package != "edm2lite" and importlib.util.find_spec(package) is None:
                    return package
    return None


def docstrings_with_examples(path):
    """The number of docstrings in a source file that hold ``>>>``."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    found = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))
    return sum(">>>" in (ast.get_docstring(node) or "") for node in found)


class Finder(doctest.DocTestFinder):
    """Also finds decorated functions, which doctest takes for those of the decorator's module."""

    def _from_module(self, module, obj):
        return super()._from_module(module, inspect.unwrap(obj) if callable(obj) else obj)


@pytest.fixture
def clean_folder(tmp_path, monkeypatch):
    """An empty working directory with temporary files beside it, and default print options."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.chdir(tmp_path / "work")
    torch.set_printoptions(profile="default")
    defaults = {"precision": 8, "threshold": 1000, "edgeitems": 3, "linewidth": 75}
    with np.printoptions(**defaults, suppress=False, nanstr="nan", infstr="inf", sign="-"):
        yield tmp_path / "work"


@pytest.mark.parametrize(
    "path", [path for path in FILES if docstrings_with_examples(path)], ids=module_name
)
def test_examples_print_what_they_show(path, clean_folder):
    module = imported(module_name(path))
    found = Finder(exclude_empty=True).find(module, module.__name__)
    tests = [test for test in found if test.examples]
    assert len(tests) == docstrings_with_examples(path), [test.name for test in tests]
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False)
    missing = {test.name: missing_package(test) for test in tests}
    for test in tests:
        if missing[test.name] is None:
            runner.run(test, out=report.append)
    assert not report, "".join(report)
    assert not list(clean_folder.iterdir()), "an example left a file in the working directory"
    if any(missing.values()):
        pytest.skip(f"examples of optional packages were not run: {missing}")


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_public_name_has_an_example(name):
    module = imported(name)
    found = {n: getattr(module, n) for n in getattr(module, "__all__", vars(module))}
    if not hasattr(module, "__all__"):
        found = {n: v for n, v in found.items() if getattr(v, "__module__", None) == name}
    public = {n: v for n, v in found.items() if not n.startswith("_") and callable(v)}
    assert public
    without = [n for n, value in public.items() if ">>>" not in (value.__doc__ or "")]
    assert not without, f"these names of {name} need an example in their docstring: {without}"
