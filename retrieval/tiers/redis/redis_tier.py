"""Answers in Redis, shared by all replicas, which announce new ones to each other in a stream.

Keys of one namespace carry one hash tag, so that each call works on Redis Cluster; nothing ever
walks the key space:

    reprise:2:{<namespace digest>}:a:<answer id>   an answer's record; for exact hits the id is of
                                                   its exact key
    reprise:2:{<namespace digest>}:ids             hash: answer id -> bytes, key of its record
    reprise:2:{<namespace digest>}:uses            hash: answer id -> uses
    reprise:2:{<namespace digest>}:accepted        hash: answer id -> accepted tokens
    reprise:2:{<namespace digest>}:l:<exact key>   a lease: somebody generates that answer
    reprise:2:{<namespace digest>}:value           sorted set: answer id -> its rank, see `value`

Earlier versions kept records under `x:<exact key>`; the hash `ids` says where each one lies.

What joins and leaves, in any namespace, is announced in one stream (`redis_stream`), what was to be
forgotten in another, with a count of what was (`redis_invalidations`), and what all of them hold is
entered in one ledger (`redis_ledger`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from reprise.retrieval.api.answer import EXACT_PREFIX, Answer, exact_id
from reprise.retrieval.api.invalidation import Invalidation, InvalidationPage
from reprise.retrieval.api.redis_url import parse_redis_url
from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.record import RecordReader
from reprise.retrieval.tiers.redis import redis_invalidations, redis_stream
from reprise.retrieval.tiers.redis import redis_ledger as ledger
from reprise.retrieval.tiers.redis.redis_connection import RedisConnection
from reprise.retrieval.tiers.redis.redis_expiry import RedisExpiry
from reprise.retrieval.tiers.redis.redis_keys import (
    Held,
    queue_usage,
    read_held,
    restore_charge,
    tag_of,
    usage_of,
)
from reprise.retrieval.tiers.redis.redis_ledger import Charge
from reprise.retrieval.tiers.redis.redis_removal import RedisRemoval
from reprise.retrieval.tiers.redis.redis_restores import RedisRestores
from reprise.retrieval.tiers.redis.redis_writes import RedisWriter
from reprise.retrieval.tiers.tier import TextOf, Tier, TierChanges, UsageCounts, with_usage
from reprise.retrieval.tiers.value import rank_of

logger = logging.getLogger(__name__)
_PAGE = 500


class RedisTier(Tier):
    """A tier in Redis 6 or later, or a Redis Cluster; thread-safe.

    Connects on first use, so that Redis may be absent at start. A call that fails is not repeated
    here: the caller's circuit breaker decides when to try again.

    Args:
        url: redis://, rediss:// or unix://, as redis-py reads it; option `cluster=1` for a cluster,
            `sentinel=NAME` for the master of that name, which the Sentinel of the URL knows.
        ttl_s: Time to live in seconds from when an answer was made, which Redis itself enforces;
            None for none.
        timeout_s: Most seconds that one command waits for Redis.
        stream_length: About how many changes the stream keeps.
        max_bytes: Bound on what all answers take in Redis, about; those of the least value leave
            the namespace that holds most. None leaves the trimming to others.
        max_namespaces: Bound on the namespaces; the least valuable leaves as a whole.

    Raises:
        ValueError: The URL is not understood.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float | None = None,
        timeout_s: float = 2.0,
        stream_length: int = 50_000,
        max_bytes: int | None = None,
        max_namespaces: int | None = None,
    ) -> None:
        parsed = parse_redis_url(url)
        self._ttl_ms = None if ttl_s is None else max(1, int(ttl_s * 1000))
        self._stream_length = stream_length
        self._removal = RedisRemoval(
            max_bytes=max_bytes,
            max_namespaces=max_namespaces,
            stream_length=stream_length,
        )
        self._reader = RecordReader("redis")
        self._connection = RedisConnection(parsed, timeout_s=timeout_s)
        self._clock = self._connection.clock
        self._expiry = RedisExpiry(
            self._removal, self._reader, clock=self._clock, ttl_ms=self._ttl_ms
        )
        self._restores = RedisRestores(self._connection)
        self._writer = RedisWriter(
            self._connection,
            self._removal,
            ttl_ms=self._ttl_ms,
            stream_length=stream_length,
        )
        self._cursor: str | None = None
        self._num_skipped = 0

    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        with self._connection.client() as client:
            return self._writer.put(client, answers)

    def replace(self, answers: Sequence[Answer]) -> int:
        with self._connection.client() as client:
            return self._writer.replace(client, answers)

    def record_usage(self, namespace: str, usage: Mapping[str, UsageCounts]) -> None:
        if not usage:
            return
        tag = tag_of(namespace)
        with self._connection.client() as client:
            found = read_held(client, namespace, list(usage))
            held = {i: entry for i, entry in found.items() if entry is not None}
            if not held:
                return
            pipe = client.pipeline(transaction=False)
            for answer_id in held:
                pipe.hincrby(f"{tag}:uses", answer_id, usage[answer_id].uses)
                pipe.hincrby(f"{tag}:accepted", answer_id, usage[answer_id].accepted_tokens)
            worth = sum(sum(usage[answer_id]) for answer_id in held)
            ledger.charge(pipe, Charge(namespace, 0, worth))
            sums = pipe.execute()
            now_s = steady_clock.now_s()
            ranks = {
                answer_id: rank_of(
                    uses=sums[2 * place],
                    accepted_tokens=sums[2 * place + 1],
                    num_bytes=entry.num_bytes,
                    used_s=now_s,
                )
                for place, (answer_id, entry) in enumerate(held.items())
            }
            client.zadd(f"{tag}:value", ranks, xx=True)

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        if not answer_ids:
            return 0
        with self._connection.client() as client:
            held = read_held(client, namespace, answer_ids)
            return self._removal.drop(client, namespace, held)

    def answers(self, namespace: str) -> Iterator[Answer]:
        return self._all(namespace, exact=False)

    def valuable(self, namespace: str) -> Iterator[Answer]:
        begin = 0
        while True:
            with self._connection.client() as client:
                page = client.zrevrange(f"{tag_of(namespace)}:value", begin, begin + _PAGE - 1)
            if not page:
                return
            yield from self.find(namespace, [answer_id.decode() for answer_id in page])
            begin += _PAGE

    def find(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer]:
        suffixes = {i: f"a:{i}".encode() for i in answer_ids if not i.startswith(EXACT_PREFIX)}
        return self._fetch({namespace: suffixes})

    def exact_answers(self, namespace: str) -> Iterator[Answer]:
        return self._all(namespace, exact=True)

    def find_exact(self, namespace: str, exact_keys: Sequence[bytes]) -> list[Answer]:
        names = map(exact_id, exact_keys)
        return self._fetch({namespace: {name: f"a:{name}".encode() for name in names}})

    def lease(self, namespace: str, exact_key: bytes, *, ttl_s: float) -> bool:
        name = f"{tag_of(namespace)}:l:{exact_key.hex()}"
        with self._connection.client() as client:
            return bool(client.set(name, b"", nx=True, px=max(1, int(ttl_s * 1000))))

    def end_lease(self, namespace: str, exact_key: bytes) -> None:
        with self._connection.client() as client:
            client.delete(f"{tag_of(namespace)}:l:{exact_key.hex()}")

    def _all(self, namespace: str, *, exact: bool) -> Iterator[Answer]:
        tag = tag_of(namespace)
        cursor = 0
        while True:
            with self._connection.client() as client:
                cursor, page = client.hscan(f"{tag}:ids", cursor=cursor, count=_PAGE)
            held = {i.decode(): Held.of(value).suffix for i, value in page.items()}
            wanted = {
                i: suffix for i, suffix in held.items() if i.startswith(EXACT_PREFIX) == exact
            }
            yield from self._fetch({namespace: wanted})
            if cursor == 0:
                return

    def namespaces(self) -> list[str]:
        with self._connection.client() as client:
            return ledger.namespaces(client)

    def changes(self, *, anew: bool = False, wants_added: bool = True) -> TierChanges:
        with self._connection.client() as client:
            if anew or self._cursor is None:
                self._cursor = redis_stream.last_id(client)
                return TierChanges()
            page = redis_stream.read(client, self._cursor)
            complete = not self._has_gap(client, page)
        joined: dict[str, dict[str, bytes]] = {}
        removed: list[tuple[str, str]] = []
        for namespace, answer_id, suffix in page.changes:
            if suffix is not None:
                joined.setdefault(namespace, {})[answer_id] = suffix
            else:
                joined.get(namespace, {}).pop(answer_id, None)
                removed.append((namespace, answer_id))
        added = self._fetch(joined) if wants_added else []
        # Only now: what could not be fetched is read again.
        self._cursor = page.cursor
        self._note_skipped(page.num_skipped)
        back = {(answer.namespace, answer.answer_id) for answer in added}
        return TierChanges(tuple(added), tuple(key for key in removed if key not in back), complete)

    def expire(self) -> None:
        with self._connection.client() as client:
            self._expiry.go_on(client)

    def answer_ids(self, namespace: str) -> list[str]:
        tag, cursor, found = tag_of(namespace), 0, []
        with self._connection.client() as client:
            while True:
                cursor, page = client.hscan(f"{tag}:ids", cursor=cursor, count=_PAGE)
                found += self._with_a_record(client, tag, page)
                if cursor == 0:
                    return found

    def forget(
        self,
        invalidation: Invalidation,
        *,
        text_of: TextOf = lambda answer: answer.prompt_text,
        removed: dict[tuple[str, str], None] | None = None,
    ) -> list[tuple[str, str]]:
        if (named := invalidation.namespace) is not None:
            with self._connection.client() as client:
                restore_charge(client, named)
        gone = super().forget(invalidation, text_of=text_of, removed=removed)
        with self._connection.client() as client:
            self._restores.count_done(client)
        return gone

    def has_gone_back(self) -> bool:
        with self._connection.client() as client:
            return self._restores.is_restored(client)

    def announce(self, invalidation: Invalidation) -> None:
        with self._connection.client() as client:
            redis_invalidations.announce(client, invalidation, clock=self._clock)

    def invalidations(self, after: str | None) -> InvalidationPage:
        with self._connection.client() as client:
            return redis_invalidations.read_invalidations(client, after, clock=self._clock)

    @property
    def ahead_s(self) -> float:
        return self._clock.ahead_s

    @property
    def num_damaged(self) -> int:
        return self._reader.num_damaged + self._num_skipped

    def _note_skipped(self, count: int) -> None:
        """Count stream entries that are not known; the first ones are logged."""
        if count and not self._num_skipped:
            logger.warning(
                "Skipping an entry of a stream in redis that is not known here: another version's? "
                "Further ones are only counted."
            )
        self._num_skipped += count

    def close(self) -> None:
        self._connection.close()

    def _is_too_old(self, answer: Answer) -> bool:
        """Return whether an answer has outlived its time, of which its record does not know yet."""
        age_s = steady_clock.now_s() - answer.created_s
        return self._ttl_ms is not None and age_s * 1000 > self._ttl_ms

    def _with_a_record(self, client: Any, tag: str, page: Mapping[bytes, bytes]) -> list[str]:
        """Return, of these ids, by what is known of them, those whose record has not expired."""
        pipe = client.pipeline(transaction=False)
        for value in page.values():
            pipe.exists(Held.of(value).key(tag))
        there = pipe.execute() if page else []
        return [i.decode() for i, exists in zip(page, there, strict=True) if exists]

    def _has_gap(self, client: Any, page: redis_stream.Page) -> bool:
        """Return whether changes may have left the stream before they were read."""
        assert self._cursor is not None
        if not page.changes and not page.num_skipped:
            return redis_stream.has_gone_back(client, self._cursor)
        return redis_stream.has_gap(client, self._cursor, length=self._stream_length)

    def _fetch(self, wanted: Mapping[str, Mapping[str, bytes]]) -> list[Answer]:
        """Return the answers of these ids, by namespace; ids whose record has expired are
        forgotten.

        A record that the hash of ids does not know is nobody's: who forgets would not find it. A
        Redis that evicts keys, or somebody by hand, may have left it. However many namespaces they
        are of, that takes one round trip.
        """
        wanted = {namespace: suffixes for namespace, suffixes in wanted.items() if suffixes}
        if not wanted:
            return []
        answers, is_cluster = [], self._connection.is_cluster
        with self._connection.client() as client:
            pipe = client.pipeline(transaction=False)
            for namespace, suffixes in wanted.items():
                tag = tag_of(namespace)
                keys = [Held(0, suffix).key(tag) for suffix in suffixes.values()]
                if is_cluster:  # whose pipelines know no MGET
                    for key in keys:
                        pipe.get(key)
                else:
                    pipe.mget(keys)
                pipe.hmget(f"{tag}:ids", list(suffixes))
                queue_usage(pipe, tag, list(suffixes))
            replies = iter(pipe.execute())
            for namespace, suffixes in wanted.items():
                records = [next(replies) for _ in suffixes] if is_cluster else next(replies)
                known = next(replies)
                usage = usage_of(next(replies), next(replies))
                gone = {
                    answer_id: Held.of(value)
                    for answer_id, record, value in zip(suffixes, records, known, strict=True)
                    if record is None and value is not None
                }
                if gone:
                    self._removal.drop_expired(client, namespace, gone)
                for answer_id, record, value, uses in zip(
                    suffixes, records, known, usage, strict=True
                ):
                    is_known = record is not None and value is not None
                    answer = self._reader.read(record, namespace=namespace) if is_known else None
                    # An earlier version's, under an exact key, may be a later answer's.
                    if answer is None or answer.stored_id != answer_id:
                        continue
                    answer = self._clock.from_redis(answer)
                    if not self._is_too_old(answer):
                        answers.append(with_usage(answer, uses))
        return answers
