"""Counts errors that must not reach the engine, by place; each place is logged once."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        self._logged: set[str] = set()
        self._unwritten: set[Path] = set()

    def record(self, place: str, error: BaseException) -> None:
        """Count `error` under `place`; the first one of a place is logged with its traceback."""
        with self._lock:
            self._count(place)
            is_first = place not in self._logged
            self._logged.add(place)
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

    @contextmanager
    def writing(self, place: str, path: Path) -> Iterator[None]:
        """Run a block that writes a file, as `recording` does: where it cannot be written, as on a
        full disk, the first time of a row is one line in the log."""
        try:
            yield
        except OSError as error:
            with self._lock:
                self._count(place)
                is_first = path not in self._unwritten
                self._unwritten.add(path)
            if is_first:
                reason = error.strerror or error
                logger.warning("Reprise: %s was not written and is tried again: %s", path, reason)
        except Exception as error:
            self.record(place, error)
        else:
            with self._lock:
                self._unwritten.discard(path)

    def _count(self, place: str) -> None:
        """Count an error; the caller holds the lock."""
        self._counts[place] += 1
        self._latest_s[place] = self._clock()

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


class ReportedErrors:
    """What the workers of an engine have counted, as far as they have reported it."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._latest_s: dict[str, float] = {}
        self.has_reports = False
        """Whether this process was ever told anything."""

    def take(self, reports: Iterable[Mapping[str, Any] | None]) -> None:
        """Note what all workers report; one that says nothing once has forgotten nothing."""
        self.has_reports = True
        counts: Counter[str] = Counter()
        for report in reports:
            counts.update((report or {}).get("errors") or {})
        for place, count in counts.items():
            if count > self._counts[place]:
                self._counts[place] = count
                self._latest_s[place] = self._clock()

    def recent(self) -> dict[str, int]:
        """Return the number of errors of the places that had one reported within `RECENT_S`."""
        since_s = self._clock() - RECENT_S
        return {
            place: count
            for place, count in self._counts.items()
            if self._latest_s.get(place, since_s) > since_s
        }
