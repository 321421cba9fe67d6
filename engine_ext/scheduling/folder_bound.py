"""Keeps a folder of files under a number of bytes: those that nobody has used for longest go.

Several processes may hold the same folder to it, and write there meanwhile: between two looks it
may grow beyond.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from vllm.logger import init_logger

logger = init_logger(__name__)

_LOOK_EVERY_S = 10.0
_SHARE_KEPT = 0.9
# What was being written when its process ended.
_UNFINISHED_S = 3600.0


class _File(NamedTuple):
    used_s: float
    num_bytes: int
    path: Path


class FolderBound:
    """Holds a folder's files to a bound from a thread of its own, until it is closed."""

    def __init__(self, folder: Path, max_bytes: int, *, every_s: float = _LOOK_EVERY_S) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._every_s = every_s
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="reprise-kv-disk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look at nothing any more."""
        self._is_closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed.wait(self._every_s):
            try:
                trim(self._folder, self._max_bytes)
            except Exception as error:  # files stay until the next look
                logger.warning_once("Reprise: the KV files are not bounded: %s", error)


def trim(folder: Path, max_bytes: int) -> int:
    """Remove files if a folder holds more than `max_bytes`, down to nine tenths of that; return
    how many.

    Raises:
        OSError: The folder cannot be read, or some file in it not removed; others are.
    """
    files = list(_files(folder))
    excess = sum(file.num_bytes for file in files) - max_bytes
    if excess <= 0:
        return 0
    excess += int((1.0 - _SHARE_KEPT) * max_bytes)
    removed, failed = 0, None
    for file in sorted(files):
        if excess <= 0:
            break
        try:
            file.path.unlink()
            removed += 1
        except FileNotFoundError:  # another engine was faster
            pass
        except OSError as error:
            failed = error
            continue
        excess -= file.num_bytes
    if failed is not None:
        raise failed
    return removed


def _files(folder: Path) -> Iterator[_File]:
    """Yield finished files of blocks, and unfinished ones that nobody writes any more."""
    oldest_s = time.time() - _UNFINISHED_S
    for path in folder.rglob("*.bin*"):
        with suppress(FileNotFoundError):
            state = path.stat()
            if path.suffix == ".bin" or state.st_mtime < oldest_s:
                yield _File(max(state.st_atime, state.st_mtime), state.st_size, path)
