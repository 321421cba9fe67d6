"""A checksum of all sources that a module's compiled functions can be made of.

Compiled code takes in functions and constants of other modules, for which numba does not look when
it decides whether the code that it kept is still right. They come by imports, so what counts is the
module's own source and that of all modules of this package that it imports, directly or not.
"""

import ast
import functools
import zlib
from pathlib import Path

PACKAGE = __name__.rpartition(".")[0].rpartition(".")[0]
FOLDER = Path(__file__).parents[1]


@functools.cache
def source_stamp(module: str, folder: Path = FOLDER) -> str:
    """Return the checksum for a module of this package, whose sources lie in `folder`."""
    stamp = 0
    for path in sorted(sources_of(module, folder)):
        stamp = zlib.crc32(path.read_bytes(), stamp)
    return f"{stamp:08x}"


def sources_of(module: str, folder: Path = FOLDER) -> set[Path]:
    """Return the source files of a module and of all that it imports of this package."""
    found: set[Path] = set()
    waiting = [_path_of(module, folder)]
    while waiting:
        path = waiting.pop()
        if path is not None and path not in found:
            found.add(path)
            waiting += [_path_of(name, folder) for name in _imports(path)]
    return found


@functools.cache
def _imports(path: Path) -> frozenset[str]:
    """Return the names that a file imports, and the modules that they may be or come from."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return frozenset(names)


def _path_of(module: str, folder: Path) -> Path | None:
    """Return the file of a module of this package; None for what is none."""
    if module != PACKAGE and not module.startswith(f"{PACKAGE}."):
        return None
    path = folder.joinpath(*module.removeprefix(PACKAGE).split(".")[1:])
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None
