"""What is past its time in Redis: what is known of records that have expired, and records that have
to get a time to live yet."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from typing import Any

from reprise.retrieval.tiers.record import RecordReader
from reprise.retrieval.tiers.redis import redis_ledger as ledger
from reprise.retrieval.tiers.redis.redis_clock import RedisClock
from reprise.retrieval.tiers.redis.redis_keys import BOOKKEEPING, Held, tag_of
from reprise.retrieval.tiers.redis.redis_removal import RedisRemoval

# Answers looked at in one round, about, and the rounds in one call where much has to be done.
_PAGE = 200
_ROUNDS = 8
_MUCH = 0.25
# What the round trips for a namespace cost, in answers.
_NAMESPACE = 20
# No page is begun after so much of a call: nothing else is written meanwhile.
_BUDGET_S = 0.1
# Replies of PTTL.
_NO_RECORD, _NO_TIME = -2, -1
# By which clocks may differ.
_TOLERANCE_MS = 1000
# Has records live as long as they may, by the time that each was seen to have and the one to come,
# but for those that have been put anew meanwhile, with a later end. Returns how many.
_LIVE = """
local count = 0
for i = 1, #KEYS do
  local seen, life = tonumber(ARGV[2 * i - 1]), tonumber(ARGV[2 * i])
  local left = redis.call('pttl', KEYS[i])
  if left == -1 and seen == -1 or left > life and left <= seen then
    redis.call('pexpire', KEYS[i], life)
    count = count + 1
  end
end
return count
"""


class RedisExpiry:
    """Goes through all that the namespaces hold, again and again, a little in each call; the caller
    guards it.

    Records are given their time to live as they are written. What was written without, by an import
    or before one was configured, or with another one, gets it here; as that cannot be told from the
    time which is left, all records are read once.

    Args:
        removal: Removes answers.
        reader: Reads records.
        clock: Redis's, by which records are dated.
        ttl_ms: Time to live in milliseconds; None for none.
    """

    def __init__(
        self,
        removal: RedisRemoval,
        reader: RecordReader,
        *,
        clock: RedisClock,
        ttl_ms: int | None,
    ) -> None:
        self._removal, self._reader = removal, reader
        self._clock, self._ttl_ms = clock, ttl_ms
        self._namespaces: list[str] = []
        self._cursor = 0
        self._num_rounds = -1  # of all namespaces that were begun before the one under way

    def go_on(self, client: Any) -> None:
        """Look at the next answers, and at more of them where much has to be done."""
        until_s = time.monotonic() + _BUDGET_S
        for _ in range(_ROUNDS):
            cost = seen = changed = 0
            if not self._namespaces:
                self._namespaces = ledger.namespaces(client)
                random.shuffle(self._namespaces)  # replicas share the work
                self._num_rounds += 1
            while self._namespaces and cost < _PAGE:
                of_page, of_these = self._look(client, self._namespaces[-1])
                cost += _NAMESPACE + of_page
                seen, changed = seen + of_page, changed + of_these
                if self._cursor == 0:
                    self._namespaces.pop()
                if time.monotonic() >= until_s:
                    return
            if changed <= _MUCH * seen:
                return

    def _look(self, client: Any, namespace: str) -> tuple[int, int]:
        """Return how many answers the next page of a namespace has, and for how many of them
        something was done."""
        tag = tag_of(namespace)
        pipe = client.pipeline(transaction=False)
        for name in BOOKKEEPING:  # earlier versions gave them a time
            pipe.persist(f"{tag}:{name}")
        pipe.hscan(f"{tag}:ids", cursor=self._cursor, count=_PAGE)
        self._cursor, page = pipe.execute()[-1]
        held = {i.decode(): Held.of(value) for i, value in page.items()}
        pipe = client.pipeline(transaction=False)
        for found in held.values():
            pipe.pttl(found.key(tag))
        lives_ms = dict(zip(held, pipe.execute() if held else (), strict=True))
        gone = {i: held[i] for i, life_ms in lives_ms.items() if life_ms == _NO_RECORD}
        if gone:
            self._removal.drop_expired(client, namespace, gone)
        doubtful = {
            held[i].key(tag): life for i, life in lives_ms.items() if self._is_doubtful(life)
        }
        num_bound = self._bind(client, namespace, doubtful) if doubtful else 0
        return len(held), len(gone) + num_bound

    def _is_doubtful(self, life_ms: int) -> bool:
        """Return whether a record that lives for so long may live too long."""
        if self._ttl_ms is None or life_ms == _NO_RECORD:
            return False
        return self._num_rounds == 0 or life_ms == _NO_TIME or life_ms > self._ttl_ms

    def _bind(self, client: Any, namespace: str, lives_ms: Mapping[bytes, int]) -> int:
        """Have records, of which it is known how long they live, expire as if they had been written
        with the time to live; return how many did not."""
        assert self._ttl_ms is not None
        now_s, keys, values = self._clock.now_s(), [], []
        records = client.mget(list(lives_ms))  # of one slot, so that a cluster takes it too
        for (key, seen_ms), record in zip(lives_ms.items(), records, strict=True):
            answer = None if record is None else self._reader.read(record, namespace=namespace)
            age_s = 0.0 if answer is None else max(0.0, now_s - answer.created_s)
            life_ms = max(1, self._ttl_ms - int(age_s * 1000))
            if seen_ms == _NO_TIME or seen_ms > life_ms + _TOLERANCE_MS:
                keys += [key]
                values += [seen_ms, life_ms]
        if not keys:
            return 0
        return int(client.execute_command("EVAL", _LIVE, len(keys), *keys, *values))
