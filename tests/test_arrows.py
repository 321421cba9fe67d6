"""Which room may import which, and that nothing imports in circles, for all of the code.

Late imports and those for types only count as well: they show a name in the wrong place.
"""

import ast
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("engine_ext", "retrieval", "spec", "kernels", "eval")

# By room, `folder` being its top modules: the rooms that it may import. Rooms of another folder are
# allowed by the folder's own line.
FOLDER_ARROWS: dict[str, set[str]] = {
    "engine_ext": {"retrieval", "spec", "kernels"},
    "retrieval": set(),
    "spec": set(),
    "kernels": set(),
    "eval": {"engine_ext", "retrieval", "spec", "kernels"},
}
_ENGINE_ROOMS = {
    "engine_ext.core",
    "engine_ext.compat",
    "engine_ext.scheduling",
    "engine_ext.worker",
    "engine_ext.request",
}
_RETRIEVAL_ROOMS = {
    "retrieval.host",
    "retrieval.query",
    "retrieval.api",
    "retrieval.tiers",
    "retrieval.tiers.redis",
    "retrieval.search",
}
_SPEC_ROOMS = {
    "spec.api",
    "spec.runtime",
    "spec.corpus",
    "spec.lengths",
    "spec.predictor",
    "spec.batching",
}
ROOM_ARROWS: dict[str, set[str]] = {
    "engine_ext.core": set(),
    "engine_ext.compat": {"engine_ext.core"},
    "engine_ext.scheduling": {"engine_ext.core", "engine_ext.compat"},
    "engine_ext.worker": {"engine_ext.core", "engine_ext.compat"},
    "engine_ext.request": {"engine_ext.core", "engine_ext.compat"},
    "engine_ext.frontend": {"engine_ext.core", "engine_ext.compat", "engine_ext.request"},
    "engine_ext": _ENGINE_ROOMS | {"engine_ext.frontend"},
    "engine_ext.cli": _ENGINE_ROOMS | {"engine_ext.frontend", "engine_ext"},
    "retrieval.host": set(),
    "retrieval.query": set(),
    "retrieval.api": {"retrieval.host", "retrieval.query"},
    "retrieval.tiers": {"retrieval.host", "retrieval.query", "retrieval.api"},
    "retrieval.tiers.redis": {
        "retrieval.host",
        "retrieval.query",
        "retrieval.api",
        "retrieval.tiers",
    },
    "retrieval.search": _RETRIEVAL_ROOMS - {"retrieval.search"},
    "retrieval.service": _RETRIEVAL_ROOMS,
    "retrieval": _RETRIEVAL_ROOMS | {"retrieval.service"},
    "retrieval.cli": _RETRIEVAL_ROOMS | {"retrieval.service", "retrieval"},
    "spec.api": set(),
    "spec.runtime": set(),
    "spec.corpus": {"spec.api", "spec.runtime"},
    "spec.predictor": {"spec.api", "spec.runtime", "spec.corpus", "spec.lengths"},
    "spec.lengths": {"spec.api", "spec.runtime", "spec.corpus", "spec.predictor"},
    "spec.batching": _SPEC_ROOMS - {"spec.batching"},
    "spec": _SPEC_ROOMS,
    "kernels.verify": {"kernels"},
    "kernels.draft": {"kernels"},
}
"""Inside a folder. Rooms of `eval` may import each other, as long as there is no circle."""


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package, by its name below `reprise`."""
    found = {}
    for folder in FOLDERS:
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """The modules that a module imports, at any time and for whatever reason."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("reprise.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").removeprefix("reprise.")
            if node.level:
                above = package[: len(package) - node.level + 1]
                base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                whole = f"{base}.{alias.name}" if base != "reprise" else alias.name
                found.add(whole if whole in known else base)
    return (found & known.keys()) - {name}


def circles(arrows: Mapping[str, Set[str]]) -> list[list[str]]:
    """Groups of nodes each of which reaches all others (Tarjan's components of more than one)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(arrows.get(node, ())):
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for node in sorted(arrows):
        if node not in index:
            visit(node)
    return found


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    known = modules(ROOT)
    assert len(known) > 150, "the code is somewhere else"
    return {name: imports_of(name, path, known) for name, path in known.items()}


@pytest.fixture(scope="module")
def rooms() -> dict[str, str]:
    """The room of each module: its folder."""
    return {
        name: ".".join(path.relative_to(ROOT).parent.parts) for name, path in modules(ROOT).items()
    }


def room_arrows(
    graph: Mapping[str, set[str]], rooms: Mapping[str, str]
) -> Iterator[tuple[str, str, str]]:
    for name, imported in sorted(graph.items()):
        for other in sorted(imported):
            if rooms[name] != rooms[other]:
                yield rooms[name], rooms[other], f"{name} imports {other}"


def test_folders_are_imported_by_who_may(graph: dict[str, set[str]], rooms: dict[str, str]) -> None:
    wrong = [
        arrow
        for room, other, arrow in room_arrows(graph, rooms)
        if (folder := room.split(".")[0]) != (imported := other.split(".")[0])
        and imported not in FOLDER_ARROWS[folder]
    ]
    assert not wrong


def test_rooms_are_imported_by_who_may(graph: dict[str, set[str]], rooms: dict[str, str]) -> None:
    wrong = [
        arrow
        for room, other, arrow in room_arrows(graph, rooms)
        if room.split(".")[0] == other.split(".")[0] != "eval"
        and other not in ROOM_ARROWS.get(room, set())
    ]
    assert not wrong


def test_no_module_and_no_room_imports_in_circles(
    graph: dict[str, set[str]], rooms: dict[str, str]
) -> None:
    between: dict[str, set[str]] = {}
    for room, other, _ in room_arrows(graph, rooms):
        between.setdefault(room, set()).add(other)
    assert circles(graph) == []
    assert circles(between) == []


@pytest.mark.parametrize("folder", ["retrieval", "spec", "kernels"])
def test_the_core_knows_no_vllm(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "vllm" for name in names), path


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []
