"""Threads that outlive their errors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

logger = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.1
_MAX_PAUSE_S = 10.0


class LoopErrors:
    """Counts what goes wrong in a thread's loop; the first of a row is one line in the log.

    Args:
        doing: What the loop does, for the log: "Accepting clients of retrieval".
    """

    def __init__(self, doing: str) -> None:
        self.num = 0
        """Errors so far."""
        self._doing = doing
        self._pause_s, self._failed_s = _FIRST_PAUSE_S, float("-inf")
        self._lock = threading.Lock()

    def failed(self, error: BaseException) -> float:
        """Count an error; returns how many seconds to leave it alone, more with each of a row."""
        with self._lock:
            now_s = time.monotonic()
            # What fails again soon after the longest pause is the same trouble still.
            is_first = now_s - self._failed_s > 3 * _MAX_PAUSE_S
            pause_s = _FIRST_PAUSE_S if is_first else self._pause_s
            self._pause_s, self._failed_s = min(2 * pause_s, _MAX_PAUSE_S), now_s
            self.num += 1
        if is_first:
            text = str(error).strip().partition("\n")[0]
            logger.warning(
                "%s failed and is tried again: %s%s", self._doing, type(error).__name__, f": {text}"
            )
        logger.debug("%s failed.", self._doing, exc_info=error)
        return pause_s


def keep_going(
    loop: Callable[[], None], errors: LoopErrors, *, pause: Callable[[float], bool]
) -> None:
    """Run `loop` until it returns, from its beginning again after each error that it raises.

    Args:
        loop: Returns when there is nothing more to do.
        errors: Counts.
        pause: Waits for so many seconds; returns whether the thread is to end.
    """
    while True:
        try:
            loop()
        except Exception as error:
            if pause(errors.failed(error)):
                return
        else:
            return
