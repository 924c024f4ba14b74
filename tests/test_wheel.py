"""What is published: an sdist with everything, a wheel of it that runs without the checkout."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
SHIPPED = ("edm2lite", "training", "tools", "configs")
KEPT = (*SHIPPED, "tests", "docs", "benchmarks")
ALL_HELP = """
from importlib.metadata import distribution
from click.testing import CliRunner
from edm2lite.tools.edm2lite import COMMANDS
from edm2lite.training.__main__ import main as training

scripts = {e.name: e.load() for e in distribution("edm2lite").entry_points}
for command, words in [(training, ())] + [(s, ()) for s in scripts.values()] + [
    (scripts["edm2lite"], (name,)) for name in COMMANDS
]:
    result = CliRunner().invoke(command, [*words, "--help"], catch_exceptions=False)
    assert result.exit_code == 0 and "Usage:" in result.output, (command, words)
from edm2lite.config_file.source import shipped

assert "edm2-img512-xs" in shipped()
print(*scripts, __import__("edm2lite").__file__)
"""


def call(*command, **options):
    result = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, **options
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def files(folder):
    """Relative names of the files that belong to the repository."""
    found = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(sdist, a wheel made of it); without network, in a copy of the tree."""
    setuptools = pytest.importorskip("setuptools", minversion="77", reason="pip install '.[test]'")
    assert setuptools.__file__
    folder = tmp_path_factory.mktemp("dist")
    tree = folder / "tree"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", "*.egg-info", "build", "dist", "site", "runs", "__pycache__", ".*_cache"
    )
    shutil.copytree(ROOT, tree, ignore=ignored)
    make = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    call(sys.executable, "-c", make, folder, cwd=tree)
    (sdist,) = folder.glob("edm2lite-*.tar.gz")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    call(*pip, "wheel", *options, sdist, cwd=folder)
    (wheel,) = folder.glob("edm2lite-*.whl")
    return sdist, wheel


@pytest.mark.slow
def test_the_sdist_holds_the_repository(built):
    with tarfile.open(built[0]) as archive:
        names = {m.name.partition("/")[2] for m in archive.getmembers() if m.isfile()}
    top = {"LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "pyproject.toml", "setup.py"}
    assert top <= names
    for folder in KEPT:
        assert files(folder) <= names, sorted(files(folder) - names)


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[1]) as archive:
        names = set(archive.namelist())
        info = next(n for n in names if n.endswith(".dist-info/METADATA")).rpartition("/")[0]
        metadata = archive.read(f"{info}/METADATA").decode()
    expected = {
        name if folder == "edm2lite" else f"edm2lite/{name}"
        for folder in SHIPPED
        for name in files(folder)
    }
    assert {"edm2lite/py.typed", "edm2lite/sweep/page.html"} <= expected
    assert {n for n in names if not n.startswith(f"{info}/")} == expected
    assert any(name.startswith(info) and name.endswith("LICENSE") for name in names)
    for line in ("License-Expression: Apache-2.0", "Requires-Python: >=3.10"):
        assert line in metadata.splitlines()


@pytest.mark.slow
def test_every_command_starts_without_the_checkout(built, tmp_path):
    """In a new environment that sees the packages of this one, but not this edm2lite."""
    call(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    (packages,) = (tmp_path / "venv/lib").glob("python3*/site-packages")
    seen = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    # on the path only: what lies there as .pth, an editable edm2lite say, is not followed
    (packages / "seen.pth").write_text("\n".join(seen))
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python)
    call(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", built[1])
    away = tmp_path / "away"
    away.mkdir()
    where = {"cwd": away, "env": {"PATH": str(python.parent), "OMP_NUM_THREADS": "1"}}
    scripts = python.parent

    *names, file = call(python, "-I", "-c", ALL_HELP, **where).split()
    assert set(names) == {"edm2lite", "reconstruct_ema", "sweep_ema"}
    assert all((scripts / name).is_file() for name in names)
    assert Path(file).is_relative_to(packages)
    assert version("edm2lite") in call(scripts / "edm2lite", "--version", **where)
    plan = ("plan", "--duration", "64Mi", "--params", "1.5M", "--every", "8Mi", "--max-error", 0.1)
    assert "<- cheapest" in call(scripts / "edm2lite", *plan, **where)
    training = (python, "-I", "-m", "edm2lite.training", "digits", "--out", "run", "--dry-run")
    planned = call(*training, **where)
    config = yaml.safe_load((ROOT / "configs/digits.yaml").read_text(encoding="utf-8"))
    assert f"total_nimg: {config['total_nimg']}" in planned
    assert not any(away.iterdir())
