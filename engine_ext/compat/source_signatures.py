"""The same comparison as `signatures`, from the source files of a package that is not imported.

What patches are for lies all over vLLM: importing it takes seconds, reading it a fraction of one.
"""

import ast
import importlib.util
from functools import cache
from pathlib import Path

from reprise.engine_ext.compat.patches import Patch
from reprise.engine_ext.compat.signatures import described_difference

_PACKAGE = "vllm"
_MAX_STEPS = 16
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class UndecidedError(Exception):
    """Raised where sources do not say what an import would find."""


def difference_in_source(patch: Patch) -> str | None:
    """Compare what a patch is for with what it expects, as its source says.

    Returns:
        The difference in one line; None if there is none.

    Raises:
        UndecidedError: Only an import can tell.
    """
    module, definition = patch.module, None
    for name in patch.path.split("."):
        if definition is None:
            found = _in_module(module, name)
        elif isinstance(definition, ast.ClassDef):
            found = _in_class(module, definition, name)
        else:
            raise UndecidedError(patch.target)
        if found is None:
            return f"{patch.path} is not there"
        module, definition = found
    assert definition is not None
    return described_difference(
        patch,
        parameters=lambda: _parameters(definition),
        fields=lambda: _fields(module, definition),
    )


_Found = tuple[str, ast.AST] | None
"""The module that a definition is in, and the definition."""


@cache
def _file_of(module: str) -> Path | None:
    """Return the file of a module of vLLM's; None where there is none."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent.joinpath(*module.split(".")[1:])
    files = (path / "__init__.py", path.with_name(path.name + ".py"))
    return next((file for file in files if file.is_file()), None)


@cache
def _parsed(module: str) -> ast.Module | None:
    file = _file_of(module)
    return None if file is None else ast.parse(file.read_bytes())


def _in_module(module: str, name: str, *, steps: int = 0) -> _Found:
    """Find a name's definition, wherever it is imported from."""
    if steps > _MAX_STEPS or module.partition(".")[0] != _PACKAGE:
        raise UndecidedError(f"{module}:{name}")
    tree = _parsed(module)
    if tree is None:
        return None
    for node in _statements(tree.body):
        match node:
            case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef() if node.name == name:
                return module, node
            case ast.Assign(targets=[ast.Name(id=found)], value=value) if found == name:
                return module, value
            case ast.AnnAssign(target=ast.Name(id=found), value=ast.AST() as value) if (
                found == name
            ):
                return module, value
            case ast.ImportFrom():
                for alias in node.names:
                    if (alias.asname or alias.name) == name:
                        return _in_module(_source_of(module, node), alias.name, steps=steps + 1)
    if any(isinstance(node, _Function) and node.name == "__getattr__" for node in tree.body):
        raise UndecidedError(f"{module}:{name}")
    return None


def _statements(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return statements, those under `if` and `try` included, the last definition first."""
    found: list[ast.stmt] = []
    for node in body:
        found.append(node)
        if isinstance(node, ast.If | ast.Try):
            for part in (node.body, node.orelse, getattr(node, "finalbody", [])):
                found.extend(reversed(_statements(part)))
    return found[::-1]


def _source_of(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _file_of(module)
    is_package = file is not None and file.name == "__init__.py"
    parts = module.split(".")
    base = parts[: len(parts) - node.level + is_package]
    return ".".join([*base, *filter(None, [node.module])])


def _in_class(module: str, definition: ast.ClassDef, name: str) -> _Found:
    """Find a class's attribute, inherited or its own."""
    for node in _statements(definition.body):
        if isinstance(node, _Function) and node.name == name:
            return module, node
        if isinstance(node, ast.AnnAssign | ast.Assign) and name in _targets(node):
            raise UndecidedError(f"{module}:{definition.name}.{name}")
    for base_module, base in _bases(module, definition):
        if (found := _in_class(base_module, base, name)) is not None:
            return found
    return None


def _targets(node: ast.AnnAssign | ast.Assign) -> set[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def _bases(module: str, definition: ast.ClassDef) -> list[tuple[str, ast.ClassDef]]:
    """Return the bases that are classes of vLLM's; those of others have nothing that we patch."""
    bases = []
    for node in definition.bases:
        while isinstance(node, ast.Subscript):
            node = node.value
        if not isinstance(node, ast.Name):
            continue
        try:
            found = _in_module(module, node.id)
        except UndecidedError:
            continue
        if found is not None and isinstance(found[1], ast.ClassDef):
            bases.append((found[0], found[1]))
    return bases


def _parameters(definition: ast.AST) -> tuple[str, ...]:
    if not isinstance(definition, _Function):
        raise UndecidedError(ast.dump(definition)[:80])
    given = definition.args
    names = [*given.posonlyargs, *given.args]
    names += [given.vararg] if given.vararg else []
    names += given.kwonlyargs
    names += [given.kwarg] if given.kwarg else []
    return tuple(each.arg for each in names)


def _fields(module: str, definition: ast.AST) -> tuple[str, ...]:
    """Name the annotated fields of a class with those of its bases, or the items of a list."""
    if isinstance(definition, ast.List | ast.Tuple):
        return tuple(each.id for each in definition.elts if isinstance(each, ast.Name))
    if not isinstance(definition, ast.ClassDef):
        raise UndecidedError(ast.dump(definition)[:80])
    names: dict[str, None] = {}
    for base_module, base in reversed(_bases(module, definition)):
        names |= dict.fromkeys(_fields(base_module, base))
    for node in definition.body:
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=kind):
                if not ast.unparse(kind).startswith("ClassVar"):
                    names[name] = None
    return tuple(names)
