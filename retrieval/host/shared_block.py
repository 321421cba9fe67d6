"""Blocks of shared memory whose owner may die at any moment."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import sys
import threading
from multiprocessing import resource_tracker, shared_memory
from pathlib import Path
from typing import Any

_FOLDER = Path("/dev/shm")
_UNTRACKED = threading.Lock()


@contextlib.contextmanager
def _untracked() -> Any:
    """Keep Python's resource tracker out of it.

    It unlinks a block when any process that attached to it exits, which would pull an engine
    worker's block away with the first client that leaves. Instead, the next owner to start removes
    what is left behind.
    """
    with _UNTRACKED:
        register, unregister = resource_tracker.register, resource_tracker.unregister
        resource_tracker.register = resource_tracker.unregister = lambda *_: None
        try:
            yield
        finally:
            resource_tracker.register, resource_tracker.unregister = register, unregister


def owner_prefix(pid: int) -> str:
    """Return what the names of an owner's blocks begin with.

    The process-id namespace is part of it: containers may share the memory but not the ids.
    """
    return f"reprise-{_pid_namespace()}-{pid}-"


def create_block(prefix: str, num_bytes: int) -> shared_memory.SharedMemory:
    """Return a new block, readable by this user only.

    Raises:
        OSError: Shared memory is full.
    """
    with _untracked():
        block: Any = shared_memory.SharedMemory(
            name=prefix + secrets.token_hex(6), create=True, size=num_bytes
        )
        try:
            # All of it now: a page that is not to be had later ends the process by a signal.
            os.posix_fallocate(block._fd, 0, num_bytes)
        except OSError:
            block.close()
            block.unlink()
            raise
        return block  # type: ignore[no-any-return]


def free_bytes() -> int:
    """Return the free bytes of shared memory; `sys.maxsize` where that is unknown."""
    try:
        return shutil.disk_usage(_FOLDER).free
    except OSError:
        return sys.maxsize


def attach_block(name: str) -> shared_memory.SharedMemory:
    """Return an existing block.

    Raises:
        OSError: There is none of that name.
    """
    with _untracked():
        return shared_memory.SharedMemory(name=name)


def unlink_blocks(prefix: str) -> int:
    """Remove all blocks of a prefix; who is attached keeps what is there. How many there were."""
    removed = 0
    with contextlib.suppress(OSError):
        for path in _FOLDER.glob(prefix + "*"):
            with contextlib.suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def remove_stale_blocks() -> int:
    """Remove the blocks of owners that are no more; how many there were."""
    removed = 0
    for path in stale_paths(_FOLDER):
        with contextlib.suppress(OSError):
            path.unlink()
            removed += 1
    return removed


def stale_paths(folder: Path) -> list[Path]:
    """Return what lies in a folder under the prefix of an owner that is no more."""
    begins = f"reprise-{_pid_namespace()}-"
    found: list[Path] = []
    with contextlib.suppress(OSError):
        for path in folder.glob(begins + "*"):
            pid = path.name.removeprefix(begins).partition("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                found.append(path)
    return found


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0
