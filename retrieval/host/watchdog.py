"""Distinguish a retrieval process that hangs from one that is slow."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

# A status is due every 0.5 s, from a thread that needs a millisecond for it: sixty in a row are
# missing only where the process is frozen or something holds its interpreter lock. Starved to a
# thousandth of a core it still sends one every second.
MAX_SILENCE_S = 30.0
# Until the embedding model is loaded, which may have to be downloaded, or come from a cold disk.
MAX_START_S = 600.0
# What passes between two looks beyond this is the owner's own standstill: both were frozen.
_MAX_LOOK_S = 1.0


class Watchdog:
    """Watches one process at a time; thread-safe.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._pid = -1
        self._is_loaded = False
        self._silence_s, self._looked_s = 0.0, clock()

    def watch(self, pid: int) -> None:
        """Begin with a process that has just been started."""
        with self._lock:
            self._pid, self._is_loaded = pid, False
            self._silence_s, self._looked_s = 0.0, self._clock()

    def heard(self, pid: int, *, is_loaded: bool) -> None:
        """Note a sign of life; those of earlier processes count for nothing."""
        with self._lock:
            if pid == self._pid:
                self._is_loaded = self._is_loaded or is_loaded
                self._silence_s = 0.0

    def hangs(self) -> bool:
        """Return whether the process has been silent for too long; asked many times a second."""
        with self._lock:
            now_s = self._clock()
            self._silence_s += min(now_s - self._looked_s, _MAX_LOOK_S)
            self._looked_s = now_s
            return self._silence_s > (MAX_SILENCE_S if self._is_loaded else MAX_START_S)
