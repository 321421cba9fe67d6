"""Folders for sockets and answers whose owner may die at any moment.

An engine's worker is killed at its end more often than not. Its retrieval process then removes the
folder; where both were killed, the next one to start does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from .shared_block import left_behind, owner_prefix


def make_folder() -> Path:
    """A new folder of this process, readable by this user only."""
    return Path(tempfile.mkdtemp(prefix=owner_prefix(os.getpid())))


def sweep_folders() -> int:
    """Remove the folders of owners that are no more; how many there were."""
    folders = left_behind(Path(tempfile.gettempdir()))
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return len(folders)
