"""Which edits make compiled code compile anew."""

import ast
import importlib
import shutil
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import pytest
from numba.core.registry import CPUDispatcher

import reprise.spec
from reprise.spec.runtime.source_stamp import FOLDER, source_stamp, sources_of

MODULES = sorted(
    ".".join(("reprise.spec", *path.relative_to(FOLDER).with_suffix("").parts))
    for path in FOLDER.rglob("*.py")
    if path.name != "__init__.py"
)


def compiled_functions(module: Any) -> list[Any]:
    """The compiled functions that a module defines."""
    values = vars(module).values()
    return [
        value
        for value in values
        if isinstance(value, CPUDispatcher) and value.py_func.__module__ == module.__name__
    ]


def names_assigned_in(path: Path) -> set[str]:
    """The names that a module binds at its top level, functions and classes included."""
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return names


def is_of_this_package(value: Any) -> bool:
    """Constants, and functions and classes that no other package has defined."""
    if isinstance(value, ModuleType):
        return False
    is_named = isinstance(value, FunctionType | type)
    return not is_named or value.__module__.startswith("reprise.spec")


def test_all_that_compiled_code_uses_is_covered() -> None:
    checked = 0
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for function in compiled_functions(module):
            sources = sources_of(module_name)
            defined = set().union(*(names_assigned_in(path) for path in sources))
            for name in function.py_func.__code__.co_names:
                value = function.py_func.__globals__.get(name)
                if value is None or not is_of_this_package(value):
                    continue
                if isinstance(value, CPUDispatcher) and value.py_func.__module__ in MODULES:
                    assert Path(value.py_func.__code__.co_filename) in sources
                assert name in defined, (module_name, name)
                checked += 1
    assert checked > 300


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the package's sources."""
    folder = tmp_path / "spec"
    shutil.copytree(FOLDER, folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def changed_by(file: str, old: str, new: str, folder: Path) -> set[str]:
    """The modules whose compiled code is compiled anew after an edit."""
    before = {module: source_stamp.__wrapped__(module, folder) for module in MODULES}
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    after = {module: source_stamp.__wrapped__(module, folder) for module in MODULES}
    return {module for module in MODULES if before[module] != after[module]}


def test_a_constant_is_covered_where_compiled_code_of_other_modules_uses_it(copy: Path) -> None:
    changed = changed_by("runtime/layout.py", "MAX_CANDIDATES = 6", "MAX_CANDIDATES = 7", copy)
    assert {"reprise.spec.predictor.choice", "reprise.spec.batching.shares"} <= changed
    assert "reprise.spec.lengths.step_times" not in changed


def test_a_field_of_a_table_is_covered_where_the_table_is_opened(copy: Path) -> None:
    changed = changed_by("predictor/scratch.py", "int32(8)]", "int32(9)]", copy)
    assert {"reprise.spec.batching.drafting", "reprise.spec.batching.shares"} <= changed


@pytest.mark.parametrize(
    ("file", "module"),
    [
        ("provider.py", "reprise.spec.provider"),
        ("lengths/draft_length.py", "reprise.spec.lengths.draft_length"),
        ("corpus/corpora.py", "reprise.spec.corpus.corpora"),
    ],
)
def test_what_no_compiled_code_is_made_of_compiles_nothing(
    file: str, module: str, copy: Path
) -> None:
    changed = changed_by(file, '"""', '"""Or: ', copy)
    assert module in changed
    assert changed <= {module, "reprise.spec.provider"}
    for name in changed:
        assert not compiled_functions(importlib.import_module(name))


def test_a_stamp_is_of_this_package() -> None:
    assert Path(reprise.spec.__file__).parent == FOLDER
    assert source_stamp("reprise.spec.runtime.compiled") != source_stamp("elsewhere")
    assert sources_of("elsewhere") == set()
