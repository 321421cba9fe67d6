"""A circuit breaker: what fails again and again is left alone, and tried once in a while."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeVar

from reprise.retrieval.tiers.tier import TierError

logger = logging.getLogger(__name__)
Result = TypeVar("Result")
State = Literal["closed", "open", "half-open"]


class CircuitBreaker:
    """Guards calls that may raise `TierError`; thread-safe; one log line per change of state.

    closed: calls go through; `max_failures` failures in a row open it.
    open: calls fail at once. After `retry_s`, doubled up to `max_retry_s` with each failed probe,
    half-open: one call goes through as a probe; success closes the breaker, failure opens it.

    Args:
        name: What is guarded, for the log.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        name: str,
        *,
        max_failures: int = 3,
        retry_s: float = 0.5,
        max_retry_s: float = 15.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._clock = name, clock
        self._max_failures = max_failures
        self._first_retry_s, self._max_retry_s = retry_s, max_retry_s
        self._retry_s = retry_s
        self._failures = 0
        self._state: State = "closed"
        self._opened_s = 0.0
        self._lock = threading.Lock()

    @property
    def state(self) -> State:
        """closed, open or half-open."""
        return self._state

    def call(self, function: Callable[[], Result]) -> Result:
        """Run `function` if the breaker lets it.

        Raises:
            TierError: The breaker is open. What `function` raises is passed on.
        """
        self._admit()
        try:
            result = function()
        except Exception as error:
            # Any: a probe that ended otherwise would leave the breaker half-open for ever.
            expected = isinstance(error, TierError)
            self.failed(str(error) if expected else f"{type(error).__name__}: {error}")
            raise
        self.succeeded()
        return result

    def _admit(self) -> None:
        with self._lock:
            if self._state == "closed":
                return
            if self._state == "open" and self._clock() - self._opened_s >= self._retry_s:
                self._state = "half-open"
                return
            raise TierError(f"{self._name} is paused: it failed {self._failures} times")

    def failed(self, reason: str) -> None:
        """Count a failure."""
        with self._lock:
            self._failures += 1
            if self._state == "half-open":
                self._retry_s = min(2 * self._retry_s, self._max_retry_s)
            elif self._state == "open" or self._failures < self._max_failures:
                return
            else:
                logger.warning("%s fails, going on without it: %s", self._name, reason)
            self._state, self._opened_s = "open", self._clock()

    def succeeded(self) -> None:
        """Count a success."""
        with self._lock:
            if self._state != "closed":
                logger.warning("%s works again.", self._name)
            self._state, self._failures, self._retry_s = "closed", 0, self._first_retry_s
