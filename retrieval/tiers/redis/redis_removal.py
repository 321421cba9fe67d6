"""What leaves a tier in Redis: because it was removed, has expired, or had to make room."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from reprise.retrieval.api.answer import EXACT_PREFIX
from reprise.retrieval.tiers.redis import redis_ledger as ledger
from reprise.retrieval.tiers.redis import redis_stream
from reprise.retrieval.tiers.redis.redis_keys import BOOKKEEPING, Held, read_held, tag_of
from reprise.retrieval.tiers.redis.redis_ledger import Charge

# Of the answers looked at together when some have to go.
_TRIM_PAGE = 256
# Rounds in one call: the next call goes on.
_TRIM_ROUNDS = 40
# Trimmed a little further than the bound, so that not every answer that joins trims.
_TRIM_SLACK = 0.01
# Removes answers, or, of these, those whose record is gone: what was put anew meanwhile stays. It
# needs no memory, where a transaction of such commands is refused by a Redis that has none left.
_DROP = """
local count, freed = 0, 0
for i = 2, #ARGV do
  local id, record = ARGV[i], KEYS[i + 3]
  if ARGV[1] == 'all' or redis.call('exists', record) == 0 then
    local held = redis.call('hget', KEYS[1], id)
    if held then
      count, freed = count + 1, freed + (tonumber(string.match(held, '^(%d+) ')) or 0)
    end
    for name = 1, 3 do
      redis.call('hdel', KEYS[name], id)
    end
    redis.call('zrem', KEYS[4], id)
    redis.call('del', record)
  end
end
return {count, freed}
"""


class RedisRemoval:
    """Removes answers; holds no connection of its own.

    Args:
        max_bytes: Bound on what all answers take; None leaves the trimming to others.
        max_namespaces: Bound on the namespaces; the same.
        stream_length: About how many changes the stream keeps.
    """

    def __init__(
        self,
        *,
        max_bytes: int | None,
        max_namespaces: int | None,
        stream_length: int,
    ) -> None:
        self._max_bytes, self._max_namespaces = max_bytes, max_namespaces
        self._stream_length = stream_length

    def drop(self, client: Any, namespace: str, held: Mapping[str, Held | None]) -> int:
        """Remove answers; how many were there. What two replicas remove at once, one counts."""
        count, freed = self._drop(client, namespace, held, "all")
        pipe = client.pipeline(transaction=False)
        # Nobody follows those for exact hits.
        if followed := [i for i in held if not i.startswith(EXACT_PREFIX)]:
            redis_stream.announce_removed(pipe, namespace, followed, length=self._stream_length)
        if count:
            ledger.charge(pipe, Charge(namespace, -freed))
        pipe.execute()
        return count

    def drop_expired(self, client: Any, namespace: str, held: Mapping[str, Held | None]) -> None:
        """Forget what is known of answers, unless their record is there after all."""
        count, freed = self._drop(client, namespace, held, "expired")
        if count:
            ledger.charge(client, Charge(namespace, -freed))

    def _drop(
        self, client: Any, namespace: str, held: Mapping[str, Held | None], which: str
    ) -> tuple[int, int]:
        """Return how many of these answers were there and left, and their bytes."""
        tag = tag_of(namespace)
        records = [
            f"{tag}:a:{answer_id}".encode() if found is None else found.key(tag)
            for answer_id, found in held.items()
        ]
        keys = [*(f"{tag}:{name}" for name in BOOKKEEPING), *records]
        count, freed = client.execute_command("EVAL", _DROP, len(keys), *keys, which, *held)
        return int(count), int(freed)

    def trim(self, client: Any, written: Collection[str]) -> list[tuple[str, str]]:
        """Remove what is of least value until the bounds hold; (namespace, id) of what left."""
        if self._max_bytes is None and self._max_namespaces is None:
            return []
        left: list[tuple[str, str]] = []
        max_bytes = float("inf") if self._max_bytes is None else self._max_bytes
        max_namespaces = float("inf") if self._max_namespaces is None else self._max_namespaces
        for _ in range(_TRIM_ROUNDS):
            namespace: str | None
            held = ledger.holdings(client)
            if held.num_namespaces > max_namespaces:
                # A newcomer is of little value yet, and would never come to any.
                lowest = ledger.least_valuable(client, len(written) + 1)
                namespace = next((name for name in lowest if name not in written), lowest[0])
                excess = float("inf")
            elif held.num_bytes > max_bytes:
                namespace = ledger.largest(client)
                excess = held.num_bytes - (1 - _TRIM_SLACK) * max_bytes
            else:
                break
            if namespace is None:
                break
            left.extend(self._trim_namespace(client, namespace, excess))
        return left

    def make_room(self, client: Any, num_bytes: int) -> list[tuple[str, str]]:
        """Remove about so many bytes of what is of least value, because Redis has no memory left;
        (namespace, id) of what left."""
        left: list[tuple[str, str]] = []
        if self._max_bytes is None:
            return left
        bound = ledger.holdings(client).num_bytes - num_bytes
        for _ in range(_TRIM_ROUNDS):
            excess = ledger.holdings(client).num_bytes - bound
            namespace = ledger.largest(client)
            if excess <= 0 or namespace is None:
                break
            left.extend(self._trim_namespace(client, namespace, excess))
        return left

    def _trim_namespace(self, client: Any, namespace: str, excess: float) -> list[tuple[str, str]]:
        """Remove a page of the least valuable answers, or fewer if they are worth `excess`."""
        tag = tag_of(namespace)
        ids = [i.decode() for i in client.zrange(f"{tag}:value", 0, _TRIM_PAGE - 1)]
        if not ids:  # all has expired, and the ledger does not know
            ledger.charge(client, Charge(namespace, -ledger.bytes_of(client, namespace)))
            return []
        victims: dict[str, Held | None] = {}
        for answer_id, held in read_held(client, namespace, ids).items():
            if excess <= 0:
                break
            victims[answer_id] = held
            excess -= 0 if held is None else held.num_bytes
        self.drop(client, namespace, victims)
        return [(namespace, answer_id) for answer_id in victims]

    def remove_expired(self, client: Any, written: Mapping[str, Sequence[object]]) -> None:
        """Forget some answers that have expired: each call more than it wrote, so that what is
        known of them does not pile up."""
        for namespace in [*written, *ledger.least_valuable(client, 2)]:
            tag, count = tag_of(namespace), 8 + 2 * len(written.get(namespace, ()))
            ids = [i.decode() for i in client.zrange(f"{tag}:value", 0, count - 1)]
            if not ids:
                ledger.charge(client, Charge(namespace, -ledger.bytes_of(client, namespace)))
                continue
            held = read_held(client, namespace, ids)
            pipe = client.pipeline(transaction=False)
            for answer_id, found in held.items():
                pipe.exists(f"{tag}:a:{answer_id}" if found is None else found.key(tag))
            there = pipe.execute()
            gone = {i: held[i] for i, exists in zip(held, there, strict=True) if not exists}
            if gone:
                self.drop_expired(client, namespace, gone)
