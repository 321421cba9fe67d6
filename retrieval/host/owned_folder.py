"""Folders for sockets and answers whose owner may die at any moment.

An engine's worker is killed at its end more often than not. Its retrieval process then removes the
folder; where both were killed, the next one to start does.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

from reprise.retrieval.host.private_files import claim_folder
from reprise.retrieval.host.shared_block import owner_prefix, stale_paths

_PROBE_BYTES = 1 << 16


def make_folder() -> Path:
    """Return a new folder of this process, readable by this user only: in the folder for temporary
    files, or where that cannot be written to, in memory.

    Raises:
        OSError: No place for it can be written to.
    """
    name = owner_prefix(os.getpid()) + secrets.token_hex(6)
    problems = []
    for base in _bases():
        folder = base / name
        try:
            claim_folder(folder)
            # A full disk may still take an empty folder.
            (folder / "probe").write_bytes(bytes(_PROBE_BYTES))
            (folder / "probe").unlink()
        except OSError as error:
            problems.append(f"{base}: {error.strerror}")
            shutil.rmtree(folder, ignore_errors=True)
        else:
            return folder
    raise OSError(f"no folder for a socket can be made: {'; '.join(problems)}")


def remove_stale_folders() -> int:
    """Remove the folders of owners that are no more; how many there were."""
    folders = [folder for base in _bases() for folder in stale_paths(base)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)


def _bases() -> list[Path]:
    bases = ["/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "")]
    try:
        bases.insert(0, tempfile.gettempdir())
    except OSError:  # none can be written to, or all are full
        bases.insert(0, os.environ.get("TMPDIR", "/tmp"))
    return [Path(base) for base in dict.fromkeys(bases) if base and os.path.isdir(base)]
