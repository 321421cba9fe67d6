"""The time of day, by a clock that does not jump.

Ages are compared with times of day, as answers outlive processes and travel between machines. A
machine's clock may be set while a process runs: a jump ahead would expire every answer, a jump
back would keep expired ones. So a process reads the clock once, at its start, and counts on from
there; who starts later begins with the clock as it then is.
"""

from __future__ import annotations

import time

# Counts on while the machine sleeps, which `time.monotonic` does not.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_OFFSET_S = time.time() - time.clock_gettime(_CLOCK)


def now_s() -> float:
    """Return seconds since 1970."""
    return _OFFSET_S + time.clock_gettime(_CLOCK)
