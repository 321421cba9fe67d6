"""Cores that a process was pinned to, and keeping off them.

On the CPU, vLLM pins each worker to cores of its own: retrieval on these would take its time from
the very cores that decode, and wait for them itself.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path


def pinned_cores(pid: int) -> tuple[int, ...]:
    """Return the cores of a process that may use fewer than its parent, or others, which that has
    left to it; none of one that is not pinned."""
    try:
        own, its_parents = os.sched_getaffinity(pid), os.sched_getaffinity(_parent_of(pid))
    except (OSError, ValueError, IndexError):
        return ()
    is_pinned = own < its_parents or own.isdisjoint(its_parents)
    return tuple(sorted(own)) if is_pinned else ()


def leave_pinned_cores(pid: int) -> None:
    """Move this process, which a pinned process `pid` started, to what else `pid`'s parent may
    use."""
    if pinned := pinned_cores(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            _move_to(os.sched_getaffinity(_parent_of(pid)) - set(pinned))


def leave_cores(cores: Collection[int]) -> None:
    """Move this process off `cores`, unless it has no others."""
    with contextlib.suppress(OSError):
        if others := os.sched_getaffinity(0) - set(cores):
            _move_to(others)


def _move_to(cores: set[int]) -> None:
    for thread in os.listdir("/proc/self/task"):
        with contextlib.suppress(OSError):  # the thread may be gone
            os.sched_setaffinity(int(thread), cores)


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
