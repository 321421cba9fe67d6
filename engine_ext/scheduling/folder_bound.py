"""Keeps a folder of files under a number of bytes: those that nobody has used for longest go.

The folder may hold a million files, each in a folder of its own, and the thread that looks at them
is one of an engine core's: it works for a millisecond at a time, and rests for nine. Several
processes may hold the same folder to it, and write there meanwhile: between two looks it may grow
beyond.
"""

import os
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
from vllm.logger import init_logger

logger = init_logger(__name__)

_LOOK_EVERY_S = 10.0
_SHARE_KEPT = 0.9
# What was being written when its process ended.
_UNFINISHED_S = 3600.0
_WORKS_S = 0.001
_RESTS_TIMES = 9.0


class _File(NamedTuple):
    used_s: float
    num_bytes: int
    path: str


class _ClosedError(Exception):
    """Nothing is to be looked at any more."""


class FolderBound:
    """Holds a folder's files to a bound from a thread of its own, until it is closed."""

    def __init__(self, folder: Path, max_bytes: int, *, every_s: float = _LOOK_EVERY_S) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._every_s = every_s
        self._is_closed = threading.Event()
        self._rested_s = 0.0
        self._thread = threading.Thread(target=self._run, name="reprise-kv-disk", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Look at nothing any more."""
        self._is_closed.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_closed.wait(self._every_s):
            try:
                trim(self._folder, self._max_bytes, rest=self._rest)
            except _ClosedError:
                return
            except Exception as error:  # files stay until the next look
                logger.warning_once("Reprise: the KV files are not bounded: %s", error)

    def _rest(self) -> None:
        """Leave the interpreter to others once this thread has computed for a while."""
        worked_s = time.thread_time() - self._rested_s
        if worked_s >= _WORKS_S:
            if self._is_closed.wait(worked_s * _RESTS_TIMES):
                raise _ClosedError
            self._rested_s = time.thread_time()


def trim(folder: Path, max_bytes: int, *, rest: Callable[[], object] = lambda: None) -> int:
    """Remove files if a folder holds more than `max_bytes`, down to nine tenths of that; return
    how many.

    Args:
        folder: With folders in it.
        max_bytes: What its files may be together.
        rest: Called again and again; may wait.

    Raises:
        OSError: The folder cannot be read, or some file in it not removed; others are.
    """
    # Times and sizes alone, sorted without the interpreter's lock: paths would be many megabytes.
    times, sizes = array("d"), array("q")
    for file in _files(folder, rest):
        times.append(file.used_s)
        sizes.append(file.num_bytes)
    excess = sum(sizes) - max_bytes
    if excess <= 0:
        return 0
    beyond = int((1.0 - _SHARE_KEPT) * max_bytes)
    excess += beyond
    order = np.argsort(np.frombuffer(times))
    used_s = np.frombuffer(times)[order]  # [files] float64, the oldest first
    num_bytes = np.cumsum(np.frombuffer(sizes, dtype=np.int64)[order])  # of it and those before
    removed, after_s, failed = 0, -np.inf, None
    # Once, unless files cannot be removed, or are used meanwhile: younger ones go in their place.
    while excess > beyond and (begin := int(np.searchsorted(used_s, after_s, "right"))) < len(
        used_s
    ):
        before = int(num_bytes[begin - 1]) if begin else 0
        end = min(int(np.searchsorted(num_bytes, before + excess)), len(used_s) - 1)
        until_s = float(used_s[end])
        for file in _files(folder, rest):
            if excess <= 0:
                break
            if not after_s < file.used_s <= until_s:
                continue
            try:
                os.unlink(file.path)
                removed += 1
            except FileNotFoundError:  # another engine was faster
                pass
            except OSError as error:
                failed = error
                continue
            excess -= file.num_bytes
        after_s = until_s
    if failed is not None:
        raise failed
    return removed


def _files(folder: Path, rest: Callable[[], object]) -> Iterator[_File]:
    """Yield finished files of blocks, and unfinished ones that nobody writes any more.

    Raises:
        OSError: The folder cannot be read; folders in it that cannot are left out.
    """
    oldest_s = time.time() - _UNFINISHED_S
    folders = [str(folder)]
    os.scandir(folder).close()
    while folders:
        with suppress(FileNotFoundError, PermissionError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                rest()
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                    continue
                is_finished = entry.name.endswith(".bin")
                if not is_finished and ".bin" not in entry.name:
                    continue
                with suppress(FileNotFoundError):
                    state = entry.stat()
                    if is_finished or state.st_mtime < oldest_s:
                        used_s = max(state.st_atime, state.st_mtime)
                        yield _File(used_s, state.st_size, entry.path)
