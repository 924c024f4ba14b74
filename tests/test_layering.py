"""Who may import whom, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    [*ROOT.glob("edm2lite/**/*.py"), *ROOT.glob("training/*.py"), *ROOT.glob("tools/*.py")]
)

# module -> what it may import of ours; everything not named may import all of edm2lite
ALLOWED = {
    "edm2lite.ema.formulas": [],
    "edm2lite.ema.profile": ["edm2lite.ema.formulas"],
    "edm2lite.ema.lengths": ["edm2lite.ema.formulas"],
    "edm2lite.ema.quadrature": [],
    "edm2lite.ema.likelihood": [],
    "edm2lite.ema.rounding": ["edm2lite.ema.profile"],
    "edm2lite.ema.trajectory": [
        "edm2lite.ema.profile",
        "edm2lite.ema.quadrature",
        "edm2lite.ema.rounding",
    ],
    "edm2lite.ema.blas": [],
    "edm2lite.ema.trajectory_fit": [
        "edm2lite.ema.blas",
        "edm2lite.ema.likelihood",
        "edm2lite.ema.profile",
        "edm2lite.ema.quadrature",
        "edm2lite.ema.rounding",
        "edm2lite.ema.trajectory",
    ],
    "edm2lite.ema.solve": [
        "edm2lite.ema.blas",
        "edm2lite.ema.formulas",
        "edm2lite.ema.profile",
        "edm2lite.ema.quadrature",
        "edm2lite.ema.trajectory",
    ],
    "edm2lite.ema.planning": [
        "edm2lite.ema.profile",
        "edm2lite.ema.rounding",
        "edm2lite.ema.solve",
        "edm2lite.ema.trajectory",
    ],
    "edm2lite.ema.workers": [],
    "edm2lite.ema.blocks": ["edm2lite.ema.workers", "edm2lite.tensorfile"],
    "edm2lite.ema.stream": ["edm2lite.ema.blocks", "edm2lite.ema.workers", "edm2lite.tensorfile"],
    "edm2lite.atomic": [],
    "edm2lite.tensorfile": ["edm2lite.atomic", "edm2lite.tensorheader"],
    "edm2lite.tensorheader": [],
    "edm2lite.network.kernels.dispatch": [],
    "edm2lite.network.kernels.unit_rms": ["edm2lite.network.kernels.dispatch"],
    "edm2lite.network.kernels.recompute": ["edm2lite.network.kernels.dispatch"],
    "edm2lite.network.kernels.winograd": [],
    "edm2lite.network.kernels.packed_conv": [
        "edm2lite.network.kernels.dispatch",
        "edm2lite.network.kernels.winograd",
    ],
    "edm2lite.network.kernels.convolution": [
        "edm2lite.network.kernels.packed_conv",
        "edm2lite.network.kernels.winograd",
    ],
    "edm2lite.network.kernels.prepared": [
        "edm2lite.network.kernels.convolution",
        "edm2lite.network.kernels.packed_conv",
    ],
    "edm2lite.network.layers": [
        "edm2lite.network.kernels.convolution",
        "edm2lite.network.kernels.unit_rms",
    ],
    "edm2lite.network.operations": [
        "edm2lite.network.kernels.convolution",
        "edm2lite.network.kernels.unit_rms",
    ],
    "edm2lite.network.attention": [
        "edm2lite.network.layers",
        "edm2lite.network.kernels.dispatch",
        "edm2lite.network.kernels.unit_rms",
    ],
    "edm2lite.threads": [],
    "edm2lite.seeding": [],
    "edm2lite.units": [],
}
EXTRAS = (
    "diffusers",
    "huggingface_hub",
    "lightning",
    "matplotlib",
    "peft",
    "pytorch_lightning",
    "sklearn",
    "tensorboard",
    "torch_fidelity",
    "transformers",
)
SUBCLASSES = (  # of what an extra has: imported late themselves
    "edm2lite.metrics.digits_classifier",
    "edm2lite.integrations.lightning",
    "edm2lite.integrations.transformers",
)


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts if parts[0] == "edm2lite" else ("edm2lite", *parts))


def imports(path, top_level_only=False):
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = module_name(path).rpartition(".")[0]
            names = [f"{package}.{node.module}" if node.module else package]
            assert node.level <= 1, f"{path}: import from above its package"
            yield from names if node.level else [node.module]


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_follow_the_design(path):
    name = module_name(path)
    ours = {i for i in imports(path) if i.split(".")[0] == "edm2lite"}
    for imported in ours:
        if name.startswith("edm2lite.tools"):
            assert not imported.startswith("edm2lite.training"), (name, imported)
        elif name.startswith("edm2lite.training"):
            assert not imported.startswith("edm2lite.tools"), (name, imported)
        else:
            assert not imported.startswith(("edm2lite.training", "edm2lite.tools")), (
                name,
                imported,
            )
        if name.startswith("edm2lite.ema"):
            layer_0 = ("edm2lite.atomic", "edm2lite.lazy", "edm2lite.tensorfile")
            allowed = ("edm2lite.ema", "edm2lite.version", *layer_0)
            assert imported.startswith(allowed), (name, imported)
    if name in ALLOWED:
        assert ours <= set(ALLOWED[name]), name


def test_the_integrations_need_the_averages_alone_and_nothing_needs_them():
    package = "edm2lite.integrations"
    for path in FILES:
        ours = {i for i in imports(path) if i.startswith("edm2lite")}
        if module_name(path).startswith(package):
            assert all(i.startswith(("edm2lite.ema", "edm2lite.tensorfile", package)) for i in ours)
        else:
            assert not any(i.startswith(package) for i in ours), path


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_optional_packages_are_imported_where_they_are_used(path):
    if module_name(path) in SUBCLASSES:
        return
    for imported in imports(path, top_level_only=True):
        assert imported.split(".")[0] not in EXTRAS, imported


@pytest.mark.parametrize("path", [f for f in FILES if f.parts[-2] == "ema"], ids=module_name)
def test_the_ema_tools_need_six_packages(path):
    third_party = {i.split(".")[0] for i in imports(path)} - set(sys.stdlib_module_names)
    allowed = {"torch", "numpy", "scipy", "safetensors", "threadpoolctl", "xxhash"}
    assert third_party <= {"edm2lite", *allowed}


@pytest.mark.parametrize(
    "module",
    ["ema.planning", "ema.solve", "ema.profile", "ema.lengths", "units"],
)
def test_the_solver_does_not_load_torch(module):
    code = f"import sys, edm2lite.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_of_integrations_loads_no_framework():
    code = "import sys, edm2lite.integrations, edm2lite.integrations.lora; sys.exit(any(name in"
    code += " sys.modules for name in ('lightning', 'pytorch_lightning', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_only_one_file_talks_to_torch_distributed():
    users = {path.name for path in FILES if any(i == "torch.distributed" for i in imports(path))}
    assert users == {"distributed.py"}
