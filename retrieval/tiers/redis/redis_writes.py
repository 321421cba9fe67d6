"""How answers are written to Redis, anew or where they are still there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.exceptions import OutOfMemoryError

from reprise.retrieval.api.answer import EXACT_PREFIX, Answer
from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.record import encode_record
from reprise.retrieval.tiers.redis import redis_ledger as ledger
from reprise.retrieval.tiers.redis import redis_stream
from reprise.retrieval.tiers.redis.redis_connection import RedisConnection
from reprise.retrieval.tiers.redis.redis_keys import (
    BOOKKEEPING,
    Known,
    read_held,
    read_known,
    suffix_of,
    tag_of,
)
from reprise.retrieval.tiers.redis.redis_ledger import Charge
from reprise.retrieval.tiers.redis.redis_removal import RedisRemoval
from reprise.retrieval.tiers.tier import with_usage
from reprise.retrieval.tiers.value import rank_of

_Records = dict[str, list[tuple[Answer, bytes]]]
# What Redis takes for an answer beside its record, as measured with few answers a namespace.
_OVERHEAD_BYTES = 800
# Where Redis has no memory left, so many times what is to be written has to go: it is there twice
# while it is written. Or at least such a share of all, so that it does not take for ever.
_ROOM_FACTOR = 3
_ROOM_SHARE = 1 / 1000
# Writes records, each with what is to be known of it, over those that are there: what was removed
# or has expired does not come back. Returns by how many bytes they grew, and how many they are.
_REPLACE = """
local growth, count = 0, 0
for i = 2, #KEYS do
  local id, entry, record = ARGV[3 * i - 5], ARGV[3 * i - 4], ARGV[3 * i - 3]
  local held = redis.call('hget', KEYS[1], id)
  if held and redis.call('set', KEYS[i], record, 'XX', 'KEEPTTL') then
    redis.call('hset', KEYS[1], id, entry)
    growth = growth + tonumber(string.match(entry, '^(%d+) '))
    growth = growth - (tonumber(string.match(held, '^(%d+) ')) or 0)
    count = count + 1
  end
end
return {growth, count}
"""


class RedisWriter:
    """Writes answers; holds no connection of its own.

    Args:
        connection: Makes transactions.
        removal: Makes room.
        ttl_ms: Time to live in milliseconds, from when an answer was made; None for none.
        stream_length: About how many changes the stream keeps.
    """

    def __init__(
        self,
        connection: RedisConnection,
        removal: RedisRemoval,
        *,
        ttl_ms: int | None,
        stream_length: int,
    ) -> None:
        self._connection, self._removal = connection, removal
        self._clock = connection.clock
        self._ttl_ms, self._stream_length = ttl_ms, stream_length

    def put(self, client: Any, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        """Write answers, see `Tier.put`."""
        by_namespace: _Records = {}
        for answer in answers:
            pair = (answer, encode_record(self._clock.to_redis(answer)))
            by_namespace.setdefault(answer.namespace, []).append(pair)
        left: list[tuple[str, str]] = []
        try:
            self._write(client, by_namespace)
        except OutOfMemoryError:
            left = self._removal.make_room(client, self._wanted_bytes(client, by_namespace))
            self._write(client, by_namespace)
        # Those for exact hits may each have a time of their own.
        if self._ttl_ms is not None or any(answer.fingerprint for answer in answers):
            self._removal.remove_expired(client, by_namespace)
        return left + self._removal.trim(client, by_namespace)

    def replace(self, client: Any, answers: Sequence[Answer]) -> int:
        """Write answers that are there, see `Tier.replace`."""
        by_namespace: dict[str, list[Answer]] = {}
        for answer in answers:
            by_namespace.setdefault(answer.namespace, []).append(answer)
        return sum(self._replace(client, *of_name) for of_name in by_namespace.items())

    def _replace(self, client: Any, namespace: str, answers: Sequence[Answer]) -> int:
        tag, keys, values = tag_of(namespace), [], []
        held = read_held(client, namespace, [answer.stored_id for answer in answers])
        for answer in answers:
            if (found := held[answer.stored_id]) is not None:
                record = encode_record(self._clock.to_redis(answer))
                num_bytes = _num_bytes(namespace, record)
                keys += [found.key(tag)]
                values += [answer.stored_id, b"%d %b" % (num_bytes, found.suffix), record]
        if not keys:
            return 0
        names = (f"{tag}:ids", *keys)
        growth, count = client.execute_command("EVAL", _REPLACE, len(names), *names, *values)
        if count:
            ledger.charge(client, Charge(namespace, int(growth)))
        return int(count)

    def _write(self, client: Any, by_namespace: _Records) -> None:
        known = read_known(client, by_namespace)
        with self._connection.transaction(client) as (pipe, notes):
            for namespace, members in by_namespace.items():
                self._put(pipe, notes, namespace, members, known[namespace])

    def _wanted_bytes(self, client: Any, by_namespace: _Records) -> int:
        """Return how much room to make for answers in a Redis that has none."""
        records = [record for members in by_namespace.values() for _, record in members]
        needed = _ROOM_FACTOR * sum(len(record) + _OVERHEAD_BYTES for record in records)
        return max(needed, int(_ROOM_SHARE * ledger.holdings(client).num_bytes))

    def _put(
        self,
        pipe: Any,
        notes: Any,
        namespace: str,
        members: Sequence[tuple[Answer, bytes]],
        known: Known,
    ) -> None:
        """Queue the writing of answers, and what the ledger is to say of them."""
        tag, now_s, growth = tag_of(namespace), steady_clock.now_s(), -known.stale_bytes
        held = {i: entry for i, entry in known.held.items() if entry is not None}
        sizes = {i: entry.num_bytes for i, entry in held.items()}
        for answer, record in members:
            answer_id, suffix = answer.stored_id, suffix_of(answer)
            num_bytes = _num_bytes(namespace, record)
            growth += num_bytes - sizes.get(answer_id, 0)
            sizes[answer_id] = num_bytes
            if answer_id in held and held[answer_id].suffix != suffix.encode():
                pipe.delete(held[answer_id].key(tag))  # an earlier version's record
            pipe.set(f"{tag}:{suffix}", record, **self._time_to_live(answer))
            pipe.hset(f"{tag}:ids", answer_id, f"{num_bytes} {suffix}")
            # Imported answers bring what they earned elsewhere; those just made bring nothing.
            used = with_usage(answer, known.uses[answer_id])
            if used.uses or used.accepted_tokens:
                pipe.hset(f"{tag}:uses", answer_id, str(used.uses))
                pipe.hset(f"{tag}:accepted", answer_id, str(used.accepted_tokens))
            rank = rank_of(
                uses=used.uses,
                accepted_tokens=used.accepted_tokens,
                num_bytes=num_bytes,
                used_s=now_s,
            )
            pipe.zadd(f"{tag}:value", {answer_id: rank})
            if not answer_id.startswith(EXACT_PREFIX):  # those nobody follows
                redis_stream.announce_added(
                    notes, namespace, answer_id, suffix, length=self._stream_length
                )
        for name in BOOKKEEPING:  # earlier versions gave them a time
            pipe.persist(f"{tag}:{name}")
        ledger.charge(notes, Charge(namespace, growth, len(members)))

    def _time_to_live(self, answer: Answer) -> dict[str, Any]:
        """Return options of SET: from when the answer was made; as it was, where none is
        configured."""
        now_s, lives_ms = steady_clock.now_s(), []
        if self._ttl_ms is not None:
            # One of the future, imported say, lives no longer than one of now.
            age_s = max(0.0, now_s - answer.created_s)
            lives_ms.append(self._ttl_ms - int(age_s * 1000))
        if answer.expires_s is not None:
            lives_ms.append(int((answer.expires_s - now_s) * 1000))
        if not lives_ms:
            # An answer for exact hits is another one, with its own time.
            return {} if answer.fingerprint else {"keepttl": True}
        return {"px": max(1, min(lives_ms))}


def _num_bytes(namespace: str, record: bytes) -> int:
    """Return what an answer is charged for."""
    return len(record) + len(namespace.encode()) + _OVERHEAD_BYTES
