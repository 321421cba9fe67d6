"""Every variable of a module that can change is listed in one place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import reprise.engine_ext
from reprise.engine_ext.core.process_state import BY_ENGINE_OR_TASK, OF_THE_PROCESS

ENGINE_EXT = Path(reprise.engine_ext.__file__).parent

UNCHANGING = {
    "APIRouter", "Patch", "RequestControl", "Table", "TypeVar", "frozenset", "init_logger",
    "msgspec.msgpack.Decoder", "msgspec.msgpack.Encoder", "re.compile", "replace", "tuple",
    "typer.Typer",
}  # fmt: skip
"""What is called to make something that stays as it is once the module is loaded."""


def variables_in(source: str) -> Iterator[str]:
    """Names of a module that hold an object which may change: not constants by their name."""
    for node in ast.parse(source).body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        target = node.targets[0] if isinstance(node, ast.Assign) else node.target
        name = ast.unparse(target)
        if name.startswith("__") or name.upper() == name:
            continue
        value = node.value
        if isinstance(value, ast.Call):
            if ast.unparse(value.func) not in UNCHANGING:
                yield name
        elif isinstance(value, ast.Dict | ast.List | ast.Set):
            yield name


def test_variables_are_found() -> None:
    source = "a = set()\n_b: dict = {}\nC = {}\nd = frozenset()\ne = 3\nf = g = Cache()\n"
    assert list(variables_in(source)) == ["a", "_b", "f"]


def test_all_process_wide_state_is_listed() -> None:
    found = {
        f"{'.'.join(path.relative_to(ENGINE_EXT).with_suffix('').parts)}.{name}"
        for path in ENGINE_EXT.rglob("*.py")
        for name in variables_in(path.read_text(encoding="utf-8"))
    }
    assert found == BY_ENGINE_OR_TASK.keys() | OF_THE_PROCESS.keys()
