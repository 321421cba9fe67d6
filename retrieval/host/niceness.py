"""The niceness of this process: of all its threads, which Linux schedules one by one."""

from __future__ import annotations

import contextlib
import os

# A thread that is started meanwhile by one that was not asked yet is seen at the next look.
_MAX_LOOKS = 4


def be_nice(niceness: int) -> None:
    """Let other processes go first: give every thread here this niceness, 0 to 19.

    `os.nice` changes only the thread that calls it, and those that it starts from then on.
    """
    for _ in range(_MAX_LOOKS):
        if not _nice_all(niceness):
            return


def _nice_all(niceness: int) -> bool:
    """Return whether any thread was not as nice as that."""
    changed = False
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(OSError):  # the thread may be gone
            if os.getpriority(os.PRIO_PROCESS, thread) < niceness:
                os.setpriority(os.PRIO_PROCESS, thread, niceness)
                changed = True
    return changed
