"""Whether a Redis was started with what it held earlier, a dump say, and so may hold again what was
removed since."""

from __future__ import annotations

import time
from typing import Any

from reprise.retrieval.tiers.redis.redis_connection import RedisConnection
from reprise.retrieval.tiers.redis.redis_invalidations import count_done, num_done

_ASK_MASTERS_EVERY_S = 1.0
# Times as long as the asking took: nothing else is read meanwhile, and one may not answer.
_PAUSE = 3.0


class RedisRestores:
    """Watches how many invalidations Redis has carried out, and what serves a cluster's shards.

    Args:
        connection: To the Redis.
    """

    def __init__(self, connection: RedisConnection) -> None:
        self._connection = connection
        self._num_done = 0
        self._run_ids: dict[str, str | None] = {}
        self._next_s = float("-inf")  # when masters are asked again

    def count_done(self, client: Any) -> None:
        """Count an invalidation that has been carried out."""
        self._num_done = max(self._num_done, count_done(client))

    def is_restored(self, client: Any) -> bool:
        """Return whether what Redis holds is older than it was at the last call."""
        before = self._num_done  # what is counted while we ask is no step back
        now = num_done(client)
        self._num_done = now if now < before else max(self._num_done, now)
        has_others = self._connection.is_cluster and self._has_other_masters(client)
        return now < before or has_others

    def _has_other_masters(self, client: Any) -> bool:
        """Return whether a shard has another master, or the same one was started again: its answers
        may be older than what the shard of the log and of the count knows."""
        began_s = time.monotonic()
        if began_s < self._next_s:
            return False
        before, now = self._run_ids, self._connection.run_ids(client)
        ended_s = time.monotonic()
        self._next_s = ended_s + max(_ASK_MASTERS_EVERY_S, _PAUSE * (ended_s - began_s))
        known = {node: run_id or before.get(node) for node, run_id in now.items()}
        is_restarted = any(before.get(node) not in (None, known[node]) for node in now)
        # One that is added while all others stay has yet to get what it is to hold.
        is_replaced = bool(before.keys() - now.keys()) and bool(now.keys() - before.keys())
        has_others = is_restarted or is_replaced
        # One that is missing may yet be replaced.
        self._run_ids = known if has_others else before | known
        return has_others
