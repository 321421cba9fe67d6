"""The log of invalidations in Redis, a stream of its own."""

from __future__ import annotations

from typing import Any

from reprise.retrieval.api.invalidation import (
    Invalidation,
    InvalidationPage,
    decode_invalidations,
    encode_invalidation,
)
from reprise.retrieval.tiers.redis.redis_ledger import PREFIX

STREAM = PREFIX + "{all}:invalidations"
_FIELD = b"invalidation"
_MAX_INVALIDATIONS = 1000
_BEGINNING = "0-0"


def announce(client: Any, invalidation: Invalidation) -> None:
    """Add an invalidation for all replicas to read."""
    client.xadd(
        STREAM,
        {_FIELD: encode_invalidation(invalidation)},
        maxlen=_MAX_INVALIDATIONS,
        approximate=True,
    )


def read_invalidations(client: Any, after: str | None) -> InvalidationPage:
    """Return the invalidations beyond a position, see `Tier.invalidations`."""
    if after is None:
        return InvalidationPage(position=last_id(client, STREAM))
    # From the entry at `after` on, that one too: if it is gone, later ones may be.
    start = "-" if after == _BEGINNING else after
    entries = client.xrange(STREAM, min=start)
    if after == _BEGINNING:
        complete = len(entries) < _MAX_INVALIDATIONS
        fresh = entries
    else:
        complete = bool(entries) and entries[0][0].decode() == after
        fresh = entries[1:] if complete else entries
    position = entries[-1][0].decode() if entries else last_id(client, STREAM)
    bodies = [fields.get(_FIELD, b"") for _, fields in fresh]
    return decode_invalidations(bodies, position=position, complete=complete)


def last_id(client: Any, stream: str) -> str:
    """Return the id of the latest entry; `0-0` where there is none."""
    latest = client.xrevrange(stream, count=1)
    return latest[0][0].decode() if latest else _BEGINNING
