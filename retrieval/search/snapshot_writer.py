"""When the vector index is written to its file, and what becomes of a file that cannot be used."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from reprise.retrieval.host.private_files import remove_stale_parts
from reprise.retrieval.search.answer_index import AnswerIndex, NamespaceParts
from reprise.retrieval.search.index_snapshot import (
    SnapshotError,
    read_snapshot,
    write_snapshot,
)

logger = logging.getLogger(__name__)
_FIRST_WRITE_S = 30.0
# Writing takes at most this share of the time, however large the index.
_WRITING_SHARE = 0.01
_HURRIED_S = 0.5
_RETRY_S = 5.0


class SnapshotWriter:
    """Restores one index from a file and keeps the file up to date, in a thread of its own.

    All calls come from the thread that uses the index. While `writing`, that thread must not call
    `AnswerIndex.maintain`: the graph is being read.

    Args:
        path: The file; its folder must exist.
        identity: What made the vectors and how they are searched.
    """

    def __init__(self, path: Path, *, identity: str) -> None:
        self._path, self._identity = path, identity
        self._thread: threading.Thread | None = None
        self._pause_s, self._wrote_s = _FIRST_WRITE_S, time.monotonic()
        self._num_hurried = self._num_hurried_written = 0
        self.num_refused = self.num_failed = 0
        self.is_behind = False
        """Whether the last file to be written was not, or not yet."""
        self.is_failing = False
        """Whether it could not be written last time, as on a full disk; it is tried again."""

    def restore(self, index: AnswerIndex) -> None:
        """Fill an empty index, if there is a snapshot that fits; one log line if it does not."""
        remove_stale_parts(self._path)
        try:
            index.restore(read_snapshot(self._path, identity=self._identity, dim=index.dim))
        except FileNotFoundError:
            return
        except (SnapshotError, OSError) as error:
            self.num_refused += 1
            logger.warning("Not using the index snapshot %s: %s.", self._path, error)

    @property
    def writing(self) -> bool:
        """Whether the file is being written."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_due(self) -> bool:
        """Whether enough time has passed since the file was last written, or could not be."""
        pause_s = self._pause_s
        if self._num_hurried > self._num_hurried_written:
            pause_s = min(pause_s, _RETRY_S if self.is_failing else _HURRIED_S)
        return not self.writing and time.monotonic() - self._wrote_s >= pause_s

    def hurry(self) -> None:
        """Write the file anew soon: it holds what is to be forgotten."""
        self._num_hurried += 1

    def write(self, index: AnswerIndex, *, wait: bool = False) -> None:
        """Write the index as it is now; with `wait`, return once that is done."""
        self.wait()
        self._wrote_s, self.is_behind = time.monotonic(), True
        thread = threading.Thread(
            target=self._write,
            args=(index.parts(), index.dim, self._num_hurried),
            name="reprise-snapshot",
        )
        thread.start()
        self._thread = thread
        if wait:
            self.wait()

    def wait(self) -> None:
        """Wait until the file that is being written is there, or could not be."""
        if self._thread is not None:
            self._thread.join()

    def _write(self, parts: list[NamespaceParts], dim: int, num_hurried: int) -> None:
        began_s = time.monotonic()
        try:
            write_snapshot(self._path, parts, identity=self._identity, dim=dim)
        except Exception as error:  # a full disk, say: it is tried again
            if not self.is_failing:
                logger.warning("The index snapshot %s was not written: %s.", self._path, error)
            self.num_failed += 1
            self.is_failing, self._wrote_s = True, time.monotonic()
        else:
            self.is_failing = self.is_behind = False
            self._num_hurried_written = num_hurried
        took_s = time.monotonic() - began_s
        self._pause_s = max(_FIRST_WRITE_S, took_s / _WRITING_SHARE)
