"""Folders for sockets and answers whose owner may die at any moment.

An engine's worker is killed at its end more often than not. Its retrieval process then removes the
folder; where both were killed, the next one to start does.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
import threading
from pathlib import Path

from reprise.retrieval.host.owner_lock import hold, owner_prefix, remove_abandoned
from reprise.retrieval.host.private_files import claim_folder

_PROBE_BYTES = 1 << 16


class OwnedFolder:
    """A folder that is this process's own, and readable by this user only, once it is claimed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._lock = threading.Lock()

    def claim(self) -> None:
        """Make it, if it is not there or not there any more, and hold it until `remove`.

        Raises:
            OSError: It cannot be made, or is not this user's own.
        """
        while True:
            claim_folder(self.path)
            if self.share():
                return

    def share(self) -> bool:
        """Hold it too, where another process has made it; returns whether it is there."""
        descriptor = -1
        try:
            with contextlib.suppress(FileNotFoundError):
                descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                return hold(descriptor, self.path)
            return False
        finally:
            # Only now: in between it would be taken for one that was left behind.
            self._release(descriptor)

    def remove(self) -> None:
        """Remove it with all that is in it. Idempotent, also from several threads at once."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._release()

    def _release(self, successor: int = -1) -> None:
        """Close the descriptor that holds it, once whoever asks, and hold it by another."""
        with self._lock:
            before, self._descriptor = self._descriptor, successor
        if before >= 0:
            os.close(before)


def make_folder() -> OwnedFolder:
    """Return a new folder of this process: in the folder for temporary files, or where that cannot
    be written to, in memory.

    Raises:
        OSError: No place for it can be written to.
    """
    name = folder_name()
    problems = []
    for base in _bases():
        folder = OwnedFolder(base / name)
        try:
            folder.claim()
            # A full disk may still take an empty folder.
            (folder.path / "probe").write_bytes(bytes(_PROBE_BYTES))
            (folder.path / "probe").unlink()
        except OSError as error:
            problems.append(f"{base}: {error.strerror}")
            folder.remove()
        else:
            return folder
    raise OSError(f"no folder for a socket can be made: {'; '.join(problems)}")


def folder_name() -> str:
    """Return a name for a new folder of this process."""
    return owner_prefix(os.getpid()) + secrets.token_hex(6)


def remove_stale_folders() -> int:
    """Remove the folders of owners that are no more; how many there were."""
    return sum(map(remove_abandoned, _bases()))


def _bases() -> list[Path]:
    bases = ["/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "")]
    try:
        bases.insert(0, tempfile.gettempdir())
    except OSError:  # none can be written to, or all are full
        bases.insert(0, os.environ.get("TMPDIR", "/tmp"))
    return [Path(base) for base in dict.fromkeys(bases) if base and os.path.isdir(base)]
