"""Nothing grows without being noticed: files, functions and rooms stay of a size that one can read.

The aim is 400 lines a file, 60 a function and 15 files a room (docs/contributing.md). What is held
here leaves room for a table of patches that grows with vLLM, and for a change that is under way:
beyond these bounds there is a second noun in it, and it is to be taken apart.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("engine_ext", "eval", "kernels", "retrieval", "spec")
MAX_LINES = {"source": 500, "test": 600}
MAX_BODY_LINES = 60
"""Of a function, without its signature and its docstring, which are its manual."""
MAX_KERNEL_LINES = 100
"""The same of a Triton kernel: what it holds in registers has to be passed to all its parts."""
MAX_FILES = {"source": 18, "test": 24}
"""In a folder, `__init__.py` included. A module may have several files of tests."""


KINDS = pytest.mark.parametrize(("kind", "folders"), [("source", PACKAGES), ("test", ("tests",))])


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement that is no docstring to the last."""
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0  # type: ignore[operator]


def long_functions(source: str) -> dict[str, int]:
    return {
        node.name: body_lines(node)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and body_lines(node) > (MAX_KERNEL_LINES if is_kernel(node) else MAX_BODY_LINES)
    }


def is_kernel(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(each).startswith("triton.jit") for each in function.decorator_list)


def test_a_long_function_is_found() -> None:
    body = "    x = 1\n" * MAX_BODY_LINES
    short = f'def short(\n    a,\n):\n    """Say.\n{chr(10) * 99}    """\n{body}'
    assert long_functions(short) == {}
    assert long_functions(f"{short}    x = 2\n") == {"short": MAX_BODY_LINES + 1}
    assert long_functions(f"@triton.jit\n{short}    x = 2\n") == {}


@KINDS
def test_files(kind: str, folders: tuple[str, ...]) -> None:
    lines = {
        str(path.relative_to(ROOT)): path.read_text(encoding="utf-8").count("\n")
        for path in sources(*folders)
    }
    assert len(lines) > 50
    assert {name: n for name, n in lines.items() if n > MAX_LINES[kind]} == {}


def test_functions() -> None:
    found = {
        f"{path.relative_to(ROOT)}: {name}": lines
        for path in sources(*PACKAGES)
        for name, lines in long_functions(path.read_text(encoding="utf-8")).items()
    }
    assert found == {}


@KINDS
def test_rooms(kind: str, folders: tuple[str, ...]) -> None:
    rooms: dict[str, int] = {}
    for path in sources(*folders):
        room = str(path.parent.relative_to(ROOT))
        rooms[room] = rooms.get(room, 0) + 1
    assert len(rooms) > 15
    assert {room: files for room, files in rooms.items() if files > MAX_FILES[kind]} == {}
