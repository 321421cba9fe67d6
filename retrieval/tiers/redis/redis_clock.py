"""The clock of a Redis: the one by which times in it are meant, whoever writes and reads them."""

from __future__ import annotations

import threading
import time
from typing import Any

import msgspec
from redis.exceptions import ResponseError

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.redis.redis_ledger import GO_ON_IF_FULL, PREFIX

_LOOK_EVERY_S = 30.0
TOLERANCE_S = 1.0
"""By how much this machine's clock may differ before it is corrected: two machines then differ by
no more than `invalidation.CLOCK_SKEW_S`, and machines whose clocks are right never notice."""
_KEY = PREFIX + "{all}:clock"
# What an entry of a new stream is named after. The command TIME says the same, but is in none of
# the categories of rights that a user of ours has.
_NOW = f"""
{GO_ON_IF_FULL}
redis.call('del', KEYS[1])
local id = redis.call('xadd', KEYS[1], '*', 'now', '')
redis.call('del', KEYS[1])
return id
"""


class RedisClock:
    """Says by how much Redis's clock is ahead of this process's, looked at now and then.

    Machines that share a Redis may have clocks that differ by hours. What is written is dated by
    Redis's clock and what is read by this process's, so that ages are right on all of them.
    """

    def __init__(self) -> None:
        self.ahead_s = 0.0
        """0 where they differ by no more than is tolerated."""
        self._next_s = float("-inf")
        self._lock = threading.Lock()

    def look(self, client: Any) -> None:
        """Compare the clocks, if that was long ago."""
        if time.monotonic() < self._next_s:
            return
        # The first time all wait for it; later nobody waits for another's look.
        if not self._lock.acquire(blocking=self._next_s < 0):
            return
        try:
            if time.monotonic() >= self._next_s:
                self._compare(client)
                self._next_s = time.monotonic() + _LOOK_EVERY_S
        finally:
            self._lock.release()

    def _compare(self, client: Any) -> None:
        began_s = steady_clock.now_s()
        try:
            # With a key: on a cluster the same master tells all of them.
            name = client.execute_command("EVAL", _NOW, 1, _KEY)
        except ResponseError:  # what is asked for next says why, if that fails too
            return
        ended_s = steady_clock.now_s()
        ahead_s = int(name.partition(b"-")[0]) / 1000 - (began_s + ended_s) / 2
        if abs(ahead_s - self.ahead_s) > TOLERANCE_S + (ended_s - began_s) / 2:
            self.ahead_s = ahead_s if abs(ahead_s) > TOLERANCE_S else 0.0

    def now_s(self) -> float:
        """Return seconds since 1970 by Redis's clock."""
        return steady_clock.now_s() + self.ahead_s

    def to_redis(self, answer: Answer) -> Answer:
        """Return an answer as it is to be written."""
        return _moved(answer, self.ahead_s)

    def from_redis(self, answer: Answer) -> Answer:
        """Return an answer that was read, by this process's clock."""
        return _moved(answer, -self.ahead_s)


def _moved(answer: Answer, by_s: float) -> Answer:
    if not by_s:
        return answer
    expires_s = None if answer.expires_s is None else answer.expires_s + by_s
    return msgspec.structs.replace(answer, created_s=answer.created_s + by_s, expires_s=expires_s)
