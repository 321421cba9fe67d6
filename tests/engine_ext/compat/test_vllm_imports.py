"""All that Reprise imports of vLLM, inside functions too, is there in the installed version."""

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("vllm")

PACKAGE = Path(__file__).parents[3]
ROOMS = ("engine_ext", "kernels", "retrieval", "spec", "eval")


def imports_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Modules of vLLM and what is imported of them; not those that have an alternative."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Try) and any(
            isinstance(handler.type, ast.Name) and handler.type.id == "ImportError"
            for handler in node.handlers
        ):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
            yield from ((str(node.module), name.name) for name in node.names)
        elif isinstance(node, ast.Import):
            names = (name.name for name in node.names)
            yield from ((name, "") for name in names if name.partition(".")[0] == "vllm")
        yield from imports_of(node)


def is_there(module: str, name: str) -> bool:
    """Whether a module can be imported and has an attribute or a module of this name."""
    try:
        found = importlib.import_module(module)
        if name and not hasattr(found, name):
            importlib.import_module(f"{module}.{name}")
    except ImportError:
        return False
    return True


def test_all_that_is_imported_of_vllm_is_there() -> None:
    wanted: dict[tuple[str, str], Path] = {}
    for file in (file for room in ROOMS for file in (PACKAGE / room).rglob("*.py")):
        for one in imports_of(ast.parse(file.read_text(encoding="utf-8"))):
            wanted.setdefault(one, file.relative_to(PACKAGE))
    assert len(wanted) > 50
    assert [one for one in wanted.items() if not is_there(*one[0])] == []
    assert not is_there("vllm.config", "NothingOfThisName")
