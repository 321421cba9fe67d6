"""Folders in the user's cache directory that are made once, whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console


def cache_folder() -> Path:
    """Return where Reprise keeps what it made for this user."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "reprise"


def cached_folder(name: str, build: Callable[[Path], None], *, doing: str) -> Path:
    """Return folder `name` of the cache; made by `build` in a folder beside it, then renamed.

    Processes that ask at the same time wait for the one that builds; they say what it is `doing`.
    """
    folder = cache_folder() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder.parent / f"{name}.lock", doing=doing):
        if folder.is_dir():
            return folder
        scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=folder.parent))
        try:
            build(scratch)
            scratch.chmod(0o755)
            scratch.rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


@contextlib.contextmanager
def _exclusive(path: Path, *, doing: str) -> Iterator[None]:
    """Hold a lock file; the kernel lets go of it even if this process is killed."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            Console(stderr=True).print(f"Waiting for another process that is {doing} ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
