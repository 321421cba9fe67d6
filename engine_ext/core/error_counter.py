"""Counts errors that must not reach the engine, by place; each place is logged once."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vllm.logger import init_logger

logger = init_logger(__name__)

RECENT_S = 600.0
"""How long an error counts against the health of its place."""


class ErrorCounter:
    """Counts caught errors by the place that they occurred in. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._latest_s: dict[str, float] = {}

    def record(self, place: str, error: BaseException) -> None:
        """Count `error` under `place`; the first one of a place is logged with its traceback."""
        with self._lock:
            self._counts[place] += 1
            self._latest_s[place] = self._clock()
            is_first = self._counts[place] == 1
        if is_first:
            logger.error(
                "Reprise: %s failed (%s: %s); requests go on without it, further failures here "
                "are only counted.",
                place,
                type(error).__name__,
                error,
                exc_info=error,
            )

    @contextmanager
    def recording(self, place: str) -> Iterator[None]:
        """Run a block that may fail: an error is counted under `place` and ends only the block."""
        try:
            yield
        except Exception as error:
            self.record(place, error)

    def counts(self) -> dict[str, int]:
        """Return the number of errors by place so far."""
        with self._lock:
            return dict(self._counts)

    def recent(self) -> dict[str, int]:
        """Return the same for the places where an error occurred within `RECENT_S`."""
        with self._lock:
            since_s = self._clock() - RECENT_S
            return {
                place: self._counts[place]
                for place, latest_s in self._latest_s.items()
                if latest_s > since_s
            }
