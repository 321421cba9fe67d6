"""Answers in Redis, shared by all replicas, which tell each other of new ones by a stream.

Keys of one namespace carry one hash tag, so that each call works on Redis Cluster; nothing ever
walks the key space:

    reprise:{<namespace digest>}:x:<exact key>   record of an answer that has an exact key
    reprise:{<namespace digest>}:a:<answer id>   record of an answer that has none
    reprise:{<namespace digest>}:ids             hash: answer id -> the key of its record
    reprise:{<namespace digest>}:uses            hash: answer id -> uses
    reprise:{<namespace digest>}:accepted        hash: answer id -> accepted tokens
    reprise:{<namespace digest>}:stream          what joined (+) and left (-)
    reprise:namespaces                           hash: namespace digest -> namespace
    reprise:invalidations                        stream: what was to be forgotten
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from . import redis_invalidations
from .answer import Answer, digest
from .invalidation import Invalidation, InvalidationPage
from .record import RecordReader, encode_record
from .tier import Tier, TierChanges, TierError, Uses, with_uses

_PAGE = 500
_NAMESPACES = "reprise:namespaces"
# The hashes of a namespace that have answer ids for fields.
_BY_ID = ("ids", "uses", "accepted")


class RedisTier(Tier):
    """A tier in Redis 6 or later, or a Redis Cluster; thread-safe.

    Connects on first use, so that Redis may be absent at start. A call that fails is not repeated
    here: the caller's circuit breaker decides when to try again.

    Args:
        url: redis://, rediss:// or unix://, as redis-py reads it; `?cluster=1` for a cluster.
        ttl_s: Time to live in seconds that Redis itself enforces; None for none.
        timeout_s: Most seconds that one look-up waits for Redis.
        bulk_timeout_s: The same for writes and for reading many answers.
        stream_length: About how many changes a namespace's stream keeps.
    """

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        ttl_s: float | None = None,
        timeout_s: float = 0.05,
        bulk_timeout_s: float = 2.0,
        stream_length: int = 10_000,
    ) -> None:
        self._ttl_ms = None if ttl_s is None else max(1, int(ttl_s * 1000))
        self._stream_length = stream_length
        self._reader = RecordReader("redis")
        self._cluster = "cluster=1" in url.partition("?")[2]
        self._url = url.replace("?cluster=1", "").replace("&cluster=1", "")
        self._timeouts_s = {"look_up": timeout_s, "bulk": bulk_timeout_s}
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._cursors: dict[str, str] = {}

    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        by_namespace: dict[str, list[tuple[Answer, bytes]]] = {}
        for answer in answers:
            pair = (answer, encode_record(answer))
            by_namespace.setdefault(answer.namespace, []).append(pair)
        with self._client("bulk") as client:
            for namespace, members in by_namespace.items():
                tag = _tag(namespace)
                pipe = client.pipeline(transaction=False)
                self._keep_larger_uses(client, pipe, tag, [answer for answer, _ in members])
                for answer, record in members:
                    key = _record_key(tag, answer)
                    pipe.set(key, record, **self._time_to_live(answer))
                    pipe.hset(f"{tag}:ids", answer.answer_id, key)
                    self._announce(pipe, tag, "+", answer.answer_id, key)
                pipe.execute()
                client.hset(_NAMESPACES, tag, namespace)
        return []

    def credit(self, namespace: str, earned: Mapping[str, Uses]) -> None:
        if not earned:
            return
        tag = _tag(namespace)
        with self._client("bulk") as client:
            known = client.hmget(f"{tag}:ids", list(earned))
            pipe = client.pipeline(transaction=False)
            for (answer_id, uses), key in zip(earned.items(), known, strict=True):
                if key is not None:
                    pipe.hincrby(f"{tag}:uses", answer_id, uses.uses)
                    pipe.hincrby(f"{tag}:accepted", answer_id, uses.accepted_tokens)
            pipe.execute()

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        if not answer_ids:
            return 0
        tag = _tag(namespace)
        with self._client("bulk") as client:
            keys = client.hmget(f"{tag}:ids", list(answer_ids))
            pipe = client.pipeline(transaction=False)
            for answer_id, key in zip(answer_ids, keys, strict=True):
                if key is not None:
                    pipe.delete(key)
                    for name in _BY_ID:
                        pipe.hdel(f"{tag}:{name}", answer_id)
                self._announce(pipe, tag, "-", answer_id, "")
            pipe.execute()
        return sum(key is not None for key in keys)

    def find_exact(self, namespace: str, exact_key: bytes) -> Answer | None:
        with self._client("look_up") as client:
            record = client.get(f"{_tag(namespace)}:x:{exact_key.hex()}")
        if record is None:
            return None
        answer = self._reader.read(record, namespace=namespace)
        return answer if answer is not None and answer.exact_key == exact_key else None

    def answers(self, namespace: str) -> Iterator[Answer]:
        tag = _tag(namespace)
        cursor = 0
        while True:
            with self._client("bulk") as client:
                cursor, page = client.hscan(f"{tag}:ids", cursor=cursor, count=_PAGE)
            ids = [answer_id.decode() for answer_id in page]
            yield from self._fetch(namespace, dict(zip(ids, page.values(), strict=True)))
            if cursor == 0:
                return

    def namespaces(self) -> list[str]:
        with self._client("bulk") as client:
            return [name.decode() for name in client.hgetall(_NAMESPACES).values()]

    def changes(self, *, anew: bool = False) -> TierChanges:
        if anew:
            self._cursors.clear()
        first_look = not self._cursors
        known = self.namespaces()
        with self._client("bulk") as client:
            for namespace in known:
                stream = f"{_tag(namespace)}:stream"
                if stream not in self._cursors:
                    # A namespace that appears later is read from its beginning.
                    self._cursors[stream] = _last_id(client, stream) if first_look else "0"
            names = {f"{_tag(namespace)}:stream": namespace for namespace in known}
            entries = self._read_streams(client, {s: self._cursors[s] for s in names})
            complete = not any(self._has_gap(client, stream) for stream, _ in entries)
        self._cursors.setdefault("", "")  # from now on, a new namespace is news
        added: list[Answer] = []
        removed: list[tuple[str, str]] = []
        for stream, changes in entries:
            namespace, keys = names[stream], {}
            for entry_id, entry in changes:
                answer_id = entry[b"id"].decode()
                if entry[b"op"] == b"+":
                    keys[answer_id] = entry[b"key"]
                else:
                    keys.pop(answer_id, None)
                    removed.append((namespace, answer_id))
                last_id = entry_id.decode()
            added.extend(self._fetch(namespace, keys))
            self._cursors[stream] = last_id
        back = {(answer.namespace, answer.answer_id) for answer in added}
        return TierChanges(tuple(added), tuple(key for key in removed if key not in back), complete)

    def answer_ids(self, namespace: str) -> list[str]:
        tag, cursor, found = _tag(namespace), 0, []
        with self._client("bulk") as client:
            while True:
                cursor, page = client.hscan(f"{tag}:ids", cursor=cursor, count=_PAGE)
                found += self._with_a_record(client, page)
                if cursor == 0:
                    return found

    def announce(self, invalidation: Invalidation) -> None:
        with self._client("bulk") as client:
            redis_invalidations.announce(client, invalidation)

    def invalidations(self, after: str | None) -> InvalidationPage:
        with self._client("bulk") as client:
            return redis_invalidations.read_invalidations(client, after)

    @property
    def num_damaged(self) -> int:
        return self._reader.num_damaged

    def close(self) -> None:
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    def _time_to_live(self, answer: Answer) -> dict[str, Any]:
        """Options of SET: from when the answer was made; as it was, where none is configured."""
        if self._ttl_ms is None:
            return {"keepttl": True}
        return {"px": max(1, self._ttl_ms - int((time.time() - answer.created_s) * 1000))}

    def _with_a_record(self, client: Any, page: dict[bytes, bytes]) -> list[str]:
        """Of these ids, by their records' keys, those whose record has not expired."""
        pipe = client.pipeline(transaction=False)
        for key in page.values():
            pipe.exists(key)
        there = pipe.execute() if page else []
        return [i.decode() for i, exists in zip(page, there, strict=True) if exists]

    def _has_gap(self, client: Any, stream: str) -> bool:
        cursor, length = self._cursors[stream], self._stream_length
        return redis_invalidations.has_gap(client, stream, cursor, length=length)

    def _keep_larger_uses(
        self, client: Any, pipe: Any, tag: str, answers: Sequence[Answer]
    ) -> None:
        """Imported answers bring what they earned elsewhere; those just made bring nothing."""
        useful = [answer for answer in answers if answer.uses or answer.accepted_tokens]
        if not useful:
            return
        earned = _read_uses(client, tag, [answer.answer_id for answer in useful])
        for answer, uses in zip(useful, earned, strict=True):
            larger = with_uses(answer, uses)
            pipe.hset(f"{tag}:uses", answer.answer_id, str(larger.uses))
            pipe.hset(f"{tag}:accepted", answer.answer_id, str(larger.accepted_tokens))

    def _announce(self, pipe: Any, tag: str, operation: str, answer_id: str, key: str) -> None:
        pipe.xadd(
            f"{tag}:stream",
            {"op": operation, "id": answer_id, "key": key},
            maxlen=self._stream_length,
            approximate=True,
        )

    def _read_streams(self, client: Any, cursors: dict[str, str]) -> list[tuple[str, Any]]:
        if not cursors:
            return []
        # Streams of different namespaces lie in different slots of a cluster.
        groups = [{s: c} for s, c in cursors.items()] if self._cluster else [cursors]
        found: list[tuple[str, Any]] = []
        for group in groups:
            reply = client.xread(group, count=_PAGE) or []
            pairs = reply.items() if isinstance(reply, dict) else reply
            for stream, entries in pairs:
                # RESP3 nests the entries once more.
                flat = entries[0] if entries and isinstance(entries[0], list) else entries
                if flat:
                    found.append((stream.decode(), flat))
        return found

    def _fetch(self, namespace: str, keys: dict[str, bytes]) -> list[Answer]:
        """The answers of these ids; ids whose record has expired are forgotten."""
        if not keys:
            return []
        tag = _tag(namespace)
        with self._client("bulk") as client:
            records = client.mget(list(keys.values()))
            gone = [i for i, record in zip(keys, records, strict=True) if record is None]
            for name in _BY_ID if gone else ():
                client.hdel(f"{tag}:{name}", *gone)
            earned = _read_uses(client, tag, list(keys))
        answers = []
        for (answer_id, record), uses in zip(zip(keys, records, strict=True), earned, strict=True):
            answer = None if record is None else self._reader.read(record, namespace=namespace)
            # An exact key's record may by now be a later answer's.
            if answer is not None and answer.answer_id == answer_id:
                answers.append(with_uses(answer, uses))
        return answers

    @contextmanager
    def _client(self, purpose: str) -> Iterator[Any]:
        try:
            with self._lock:
                client = self._clients.get(purpose)
                if client is None:
                    client = self._clients[purpose] = self._connect(self._timeouts_s[purpose])
            yield client
        except (redis.RedisError, OSError, ValueError) as error:
            # The error's text never holds the URL, which may hold a password.
            raise TierError(f"redis: {type(error).__name__}: {error}") from error

    def _connect(self, timeout_s: float) -> Any:
        options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
        }
        if self._cluster:
            return redis.RedisCluster.from_url(self._url, **options)
        return redis.Redis.from_url(self._url, **options)


def _tag(namespace: str) -> str:
    return "reprise:{" + digest(namespace.encode()).hex() + "}"


def _record_key(tag: str, answer: Answer) -> str:
    if answer.exact_key is not None:
        return f"{tag}:x:{answer.exact_key.hex()}"
    return f"{tag}:a:{answer.answer_id}"


def _read_uses(client: Any, tag: str, answer_ids: list[str]) -> list[Uses]:
    uses, accepted = (client.hmget(f"{tag}:{name}", answer_ids) for name in ("uses", "accepted"))
    return [Uses(int(u or 0), int(a or 0)) for u, a in zip(uses, accepted, strict=True)]


def _last_id(client: Any, stream: str) -> str:
    latest = client.xrevrange(stream, count=1)
    return latest[0][0].decode() if latest else "0"
