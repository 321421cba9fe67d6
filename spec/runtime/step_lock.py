"""A lock that decode steps take first."""

import threading
import time
from types import TracebackType

GIVE_WAY_S = 50e-6
"""Long enough for a thread that was woken up to take both the lock and the interpreter's: a thread
that goes on at once takes them again before it, and keeps the latter for up to 5 ms."""


class StepLock:
    """`with lock:` in a decode step, `with lock.giving_way:` in all other threads, which then pause
    for a moment if a step has come meanwhile. Either may be entered again by who holds it.

    Example:
        >>> lock = StepLock()
        >>> with lock:
        ...     pass
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.is_wanted = False
        self.giving_way = GivingWay(self)
        """The same lock, for those that can wait."""

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.is_wanted = True
            self._lock.acquire()
            self.is_wanted = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.release()


class GivingWay:
    """See `StepLock`."""

    def __init__(self, steps: StepLock) -> None:
        self._steps = steps

    def __enter__(self) -> None:
        self._steps._lock.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._steps._lock.release()
        if self._steps.is_wanted:
            time.sleep(GIVE_WAY_S)
