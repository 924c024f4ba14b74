"""The graph of imports, read from the source: which module imports which, and which room which.

A room is a package of ``edm2lite``, ``edm2lite.network.kernels``, one of the flat modules of
layer 0, ``edm2lite.training``, ``edm2lite.tools``, or the root package itself. Imports inside of
functions count, imports for type checkers do not.
"""

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent


@functools.cache
def files() -> tuple[Path, ...]:
    """Every Python file of the package."""
    folders = ("edm2lite/**", "training", "tools")
    return tuple(sorted(path for folder in folders for path in ROOT.glob(f"{folder}/*.py")))


def module_name(path: Path) -> str:
    """Name under which a file is imported: ``training/data.py`` is ``edm2lite.training.data``."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "edm2lite" else ("edm2lite", *parts)
    return ".".join(parts).removesuffix(".__init__")


def imports(path: Path, *, top_level_only: bool = False) -> list[str]:
    """Modules that a file imports, each in full; a name out of a module counts as the module.

    ``from edm2lite import units`` imports ``edm2lite.units``, ``from edm2lite import load`` imports
    ``edm2lite``.
    """
    ours = {module_name(file) for file in files()}
    package = module_name(path)
    if path.name != "__init__.py":
        package = package.rpartition(".")[0]
    found: list[str] = []
    for node in _nodes(ast.parse(path.read_text(encoding="utf-8")), top_level_only):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
            continue
        base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1])
        origin = ".".join(filter(None, [base if node.level else "", node.module]))
        for alias in node.names:
            inner = f"{origin}.{alias.name}"
            found.append(inner if inner in ours else origin)
    return list(dict.fromkeys(found))


def named(path: Path) -> list[str]:
    """Modules of ours that a file names in text, to be imported when they are needed.

    That is the table of a package for :func:`edm2lite.lazy.exports`, a registry of kinds, or a
    literal for ``importlib``.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    found = []
    for call in calls:
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        if name in ("exports", "Kinds", "import_module"):
            texts = [n.value for n in ast.walk(call) if isinstance(n, ast.Constant)]
            found += [t.partition(":")[0] for t in texts if str(t).startswith("edm2lite.")]
    return found


def room(module: str) -> str:
    """The room in which a module of ours lies; ``python -m edm2lite`` is one of the commands."""
    if module == "edm2lite.__main__":
        return "edm2lite.tools"
    if module.startswith("edm2lite.network.kernels"):
        return "edm2lite.network.kernels"
    return ".".join(module.split(".")[:2])


def modules() -> dict[str, set[str]]:
    """Module -> the other modules of ours that it imports by a statement."""
    names = {module_name(path) for path in files()}
    return {
        module_name(path): (names & set(imports(path))) - {module_name(path)} for path in files()
    }


def rooms() -> dict[str, set[str]]:
    """Room -> the other rooms that its files import by a statement or by name."""
    graph: dict[str, set[str]] = {}
    for path in files():
        here = room(module_name(path))
        there = {room(m) for m in [*imports(path), *named(path)] if m.split(".")[0] == "edm2lite"}
        graph.setdefault(here, set()).update(there - {here})
    return graph


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of one cycle of a graph, the first repeated at the end; empty if there is none."""
    finished: set[str] = set()

    def follow(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in finished:
            return []
        for other in sorted(graph.get(node, ())):
            if found := follow(other, [*path, node]):
                return found
        finished.add(node)
        return []

    return next((found for node in graph if (found := follow(node, []))), [])


def table(graph: dict[str, set[str]]) -> str:
    """The graph as a table in Markdown, one line per room."""
    lines = ["| room | imports |", "|---|---|"]
    for name in graph:
        needs = ", ".join(f"`{other.removeprefix('edm2lite.')}`" for other in sorted(graph[name]))
        lines.append(f"| `{name.removeprefix('edm2lite.')}` | {needs or 'nothing of edm2lite'} |")
    return "\n".join(lines)


def _nodes(tree: ast.Module, top_level_only: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements that run: those under ``if TYPE_CHECKING`` are skipped."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending += node.orelse
        elif not (top_level_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)):
            pending += ast.iter_child_nodes(node)
