"""Who owns what lies in a shared place: a lock on it, which ends with the processes that hold it.

A process id says nothing where containers share a folder, or where one is started anew and its
processes get the ids of the last one's. So all that lies there is locked, and what nobody holds was
left behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import stat
from pathlib import Path

_NAME = re.compile(r"reprise-\d+-[0-9a-f]{12,24}")
# As 0.1.0 named what it made, and did not lock: namespace of process ids, process id.
_EARLIER_NAME = re.compile(r"reprise-(\d+)-(\d+)-[0-9a-f]{12,24}")


def owner_prefix(pid: int) -> str:
    """Return what the names of all that an owner makes begin with."""
    return f"reprise-{pid}-"


def hold(descriptor: int, path: Path) -> bool:
    """Hold a new file or folder until all copies of its descriptor are closed, at the latest by the
    end of the processes that have one; several processes may hold it. False: it is gone again."""
    with contextlib.suppress(OSError):  # where nothing can be locked, nothing is removed either
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    # It may have been taken for one that was left behind, before it was held.
    return is_at(descriptor, path)


def remove_abandoned(base: Path) -> int:
    """Remove the files and folders that owners which are no more have left here; how many."""
    removed = 0
    with contextlib.suppress(OSError):
        for path in base.glob("reprise-*"):
            with contextlib.suppress(OSError):
                removed += _remove_abandoned(path)
    return removed


def _remove_abandoned(path: Path) -> bool:
    if not _NAME.fullmatch(path.name) and not _is_of_dead_earlier_owner(path):
        return False
    # What is neither file nor folder, such as a pipe, must not be waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        info = os.fstat(descriptor)
        if info.st_uid != os.geteuid():
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not is_at(descriptor, path):
            return False
        if stat.S_ISDIR(info.st_mode):
            shutil.rmtree(path)
        elif stat.S_ISREG(info.st_mode):
            path.unlink()
        return True
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Return whether what is open lies at this path still, and was not removed or replaced."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_of_dead_earlier_owner(path: Path) -> bool:
    found = _EARLIER_NAME.fullmatch(path.name)
    if found is None or int(found[1]) != os.stat("/proc/self/ns/pid").st_ino:
        return False
    return not Path("/proc", found[2]).exists()
