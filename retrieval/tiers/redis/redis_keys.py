"""The keys of one namespace in Redis, and what its bookkeeping says of answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from reprise.retrieval.api.answer import Answer, digest
from reprise.retrieval.tiers.redis import redis_ledger as ledger
from reprise.retrieval.tiers.redis.redis_ledger import PREFIX, Charge
from reprise.retrieval.tiers.tier import UsageCounts

_PAGE = 500
BOOKKEEPING = ("ids", "uses", "accepted", "value")
"""The keys of a namespace that say what is known of its answers: three hashes by answer id, and the
sorted set of ranks. They have no time to live: the records have, and what outlives a hash of ids
would be found by nobody."""


class Held(NamedTuple):
    """What the hash `ids` says of an answer."""

    num_bytes: int
    suffix: bytes
    """Of the key of its record."""

    @classmethod
    def of(cls, value: bytes) -> Held:
        num_bytes, _, suffix = value.partition(b" ")
        return cls(int(num_bytes) if num_bytes.isdigit() else 0, suffix)

    def key(self, tag: str) -> bytes:
        return tag.encode() + b":" + self.suffix


class Known(NamedTuple):
    """What Redis knows of answers of one namespace."""

    stale_bytes: int
    """Charged for a namespace all of which has expired since; negative: what a ledger that was
    lost, evicted say, does not charge for what is there."""
    held: dict[str, Held | None]
    """By answer id; None for those that are not there."""
    uses: dict[str, UsageCounts]


def tag_of(namespace: str) -> str:
    return PREFIX + "{" + digest(namespace.encode()).hex() + "}"


def suffix_of(answer: Answer) -> str:
    """Return the end of the key of an answer's record."""
    return f"a:{answer.stored_id}"


def read_held(client: Any, namespace: str, answer_ids: Sequence[str]) -> dict[str, Held | None]:
    values = client.hmget(f"{tag_of(namespace)}:ids", list(answer_ids))
    return {
        answer_id: None if value is None else Held.of(value)
        for answer_id, value in zip(answer_ids, values, strict=True)
    }


def read_known(
    client: Any, by_namespace: Mapping[str, Sequence[tuple[Answer, bytes]]]
) -> dict[str, Known]:
    """Return what is known of answers that are to be written, in one round trip."""
    pipe = client.pipeline(transaction=False)
    ids = {name: [a.stored_id for a, _ in members] for name, members in by_namespace.items()}
    for namespace, answer_ids in ids.items():
        pipe.exists(f"{tag_of(namespace)}:ids")
        ledger.queue_bytes_of(pipe, namespace)
        pipe.hmget(f"{tag_of(namespace)}:ids", answer_ids)
        queue_usage(pipe, tag_of(namespace), answer_ids)
    replies = iter(pipe.execute())
    known = {}
    for namespace, answer_ids in ids.items():
        exists, charged = next(replies), int(next(replies) or 0)
        held = [None if value is None else Held.of(value) for value in next(replies)]
        usage = usage_of(next(replies), next(replies))
        stale_bytes = 0 if exists else charged
        if exists and charged <= 0:
            stale_bytes = -held_bytes(client, namespace)
        known[namespace] = Known(
            stale_bytes,
            dict(zip(answer_ids, held, strict=True)),
            dict(zip(answer_ids, usage, strict=True)),
        )
    return known


def held_bytes(client: Any, namespace: str) -> int:
    """Return what the hash of ids says that a namespace takes."""
    pages = client.hscan_iter(f"{tag_of(namespace)}:ids", count=_PAGE)
    return sum(Held.of(value).num_bytes for _, value in pages)


def restore_charge(client: Any, namespace: str) -> None:
    """Enter a namespace into the ledger that holds answers and is not there: the ledger was lost,
    and what it does not name nobody would forget."""
    if ledger.bytes_of(client, namespace) <= 0 and (held := held_bytes(client, namespace)):
        ledger.charge(client, Charge(namespace, held, 1))


def queue_usage(pipe: Any, tag: str, answer_ids: list[str]) -> None:
    """Ask for what `_uses_of` reads: two replies."""
    pipe.hmget(f"{tag}:uses", answer_ids)
    pipe.hmget(f"{tag}:accepted", answer_ids)


def usage_of(uses: list[bytes | None], accepted: list[bytes | None]) -> list[UsageCounts]:
    return [UsageCounts(_count(u), _count(a)) for u, a in zip(uses, accepted, strict=True)]


def _count(value: bytes | None) -> int:
    """Return a count in a hash; what is none counts as 0."""
    try:
        return int(value or 0)
    except ValueError:
        return 0
