"""Imports run one way: between packages, between the rooms of a package, and between modules.

Late imports and those for types count too: who needs them stands on the other's shoulders as well.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "kernels": set(),
    "retrieval": set(),
    "spec": set(),
    "engine_ext": {"kernels", "retrieval", "spec"},
    "eval": {"engine_ext", "kernels", "retrieval", "spec"},
}
# Rooms of a package, lowest first; those of one line know nothing of each other. "" is the modules
# at the package's top.
LAYERS: dict[str, tuple[set[str], ...]] = {
    "engine_ext": (
        {"answer_page", "core"},
        {"checks", "compat"},
        {"kv_pins", "request", "scheduling", "worker.forward", "worker.verification"},
        {"worker"},
        {"outputs", "speculator"},
        {"frontend"},
        {"engine_client"},
        {"admin"},
        {""},
        {"cli"},
    ),
    "retrieval": (
        {"host", "query", "chat_logs"},
        {"api"},
        {"tiers"},
        {"tiers.redis", "tiers.sync", "search"},
        {"remote"},
        {"in_process"},
        {"service"},
        {""},
        {"cli"},
    ),
    "spec": (
        {"api", "runtime"},
        {"corpus"},
        {"predictor"},
        {"lengths"},
        {"batching"},
        {""},
    ),
    "eval": (
        {"replay"},
        {"report"},
        {"demo_data"},
        {"real_model"},
        {"live", "virtual"},
        {"benchmarks.retrieval"},
        {"benchmarks.scale"},
        {"benchmarks", "gpu"},
        {"campaigns", "micro"},
        {""},
    ),
}


@cache
def modules() -> dict[str, Path]:
    """All modules of the project, by their names below `reprise`."""
    found = {}
    for package in MAY_IMPORT:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


@cache
def imports(module: str) -> frozenset[str]:
    """The project's own modules that a module imports, whenever it does."""
    return frozenset(found for found in _imports(module) if found != module)


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(modules()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            # The longest part of it that is a module; the rest is a name in that.
            parts = name.split(".")[1:] if name.startswith("reprise.") else []
            while parts and ".".join(parts) not in modules():
                parts.pop()
            if parts:
                yield ".".join(parts)


def room(module: str) -> str:
    """Where in its package a module lives: a room, or "" for the top."""
    package = module.partition(".")[0]
    rooms = {name for layer in LAYERS.get(package, ()) for name in layer if name}
    inside = module.removeprefix(package).lstrip(".")
    fitting = [name for name in rooms if f"{inside}.".startswith(f"{name}.")]
    return max(fitting, key=len, default="")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages(package: str) -> None:
    stray = {
        f"{module} imports {imported}"
        for module in modules()
        if module.partition(".")[0] == package
        for imported in imports(module)
        if imported.partition(".")[0] not in {package, *MAY_IMPORT[package]}
    }
    assert not stray


@pytest.mark.parametrize("package", ["retrieval", "spec", "kernels"])
def test_what_would_do_without_vllm_does(package: str) -> None:
    stray = []
    for module, path in modules().items():
        if module.partition(".")[0] == package:
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    names = [node.module or ""]
                stray += [module for name in names if name.partition(".")[0] == "vllm"]
    assert stray == []


@pytest.mark.parametrize("package", LAYERS)
def test_rooms(package: str) -> None:
    layer_of = {name: number for number, layer in enumerate(LAYERS[package]) for name in layer}
    stray = set()
    for module in modules():
        if module.partition(".")[0] != package or module == package:
            continue  # what a package gives out is imported from everywhere in it
        for imported in imports(module):
            if imported.partition(".")[0] != package or imported == package:
                continue
            mine, other = room(module), room(imported)
            if mine != other and layer_of[other] >= layer_of[mine]:
                stray.add(f"{module} imports {imported}")
    assert not stray


def test_no_module_imports_itself_by_way_of_others() -> None:
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for imported in sorted(imports(module)):
            visit(imported)
        path.pop()
        done.add(module)

    for module in modules():
        visit(module)
