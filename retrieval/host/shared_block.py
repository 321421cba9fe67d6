"""Blocks of shared memory whose owner may die at any moment."""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import shutil
import sys
from pathlib import Path

from reprise.retrieval.host.owner_lock import hold, remove_abandoned
from reprise.retrieval.host.private_files import PRIVATE

_FOLDER = Path("/dev/shm")


class SharedBlock:
    """A block of shared memory by its file descriptor, which it takes over.

    Not `multiprocessing.shared_memory`: its resource tracker unlinks a block when any process that
    attached to it exits, which would pull an engine worker's block away with the first client that
    leaves. Here the next owner to start removes what is left behind.
    """

    def __init__(self, name: str, descriptor: int, *, access: int) -> None:
        self.name = name
        try:
            self._map = mmap.mmap(descriptor, 0, access=access)
        finally:
            os.close(descriptor)
        self.buf = memoryview(self._map)

    def close(self) -> None:
        """Release it; whoever else is attached keeps it. Idempotent."""
        self.buf.release()
        self._map.close()


def create_block(prefix: str, num_bytes: int) -> SharedBlock:
    """Return a new block, readable by this user only.

    Raises:
        OSError: Shared memory is full.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    while True:
        name = prefix + secrets.token_hex(6)
        descriptor = os.open(_FOLDER / name, flags, PRIVATE)
        # Held as long as it is mapped here: the map keeps a copy of the descriptor.
        if hold(descriptor, _FOLDER / name):
            break
        os.close(descriptor)
    try:
        # All of it now: a page that cannot be had later ends the process by a signal.
        os.posix_fallocate(descriptor, 0, num_bytes)
    except OSError:
        os.close(descriptor)
        (_FOLDER / name).unlink()
        raise
    return SharedBlock(name, descriptor, access=mmap.ACCESS_WRITE)


def free_bytes() -> int:
    """Return the free bytes of shared memory; `sys.maxsize` where that is unknown."""
    try:
        return shutil.disk_usage(_FOLDER).free
    except OSError:
        return sys.maxsize


def attach_block(name: str) -> SharedBlock:
    """Return an existing block, to be read.

    Raises:
        OSError: There is none of that name.
        ValueError: It is empty.
    """
    descriptor = os.open(_FOLDER / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    return SharedBlock(name, descriptor, access=mmap.ACCESS_READ)


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
    return remove_abandoned(_FOLDER)
