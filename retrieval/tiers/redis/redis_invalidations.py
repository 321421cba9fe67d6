"""The log of invalidations in Redis, a stream of its own."""

from __future__ import annotations

from typing import Any

from reprise.retrieval.api.invalidation import (
    Invalidation,
    InvalidationPage,
    decode_invalidations,
    decode_log,
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
    # From the entry at `after` on, that one too: if it is gone, later ones may be.
    is_whole = after in (None, _BEGINNING)
    entries = client.xrange(STREAM, min="-" if is_whole else after)
    # Not what came since: it has yet to be read.
    position = entries[-1][0].decode() if entries else _BEGINNING
    if is_whole:
        complete = len(entries) < _MAX_INVALIDATIONS
        fresh = entries
    else:
        complete = bool(entries) and entries[0][0].decode() == after
        fresh = entries[1:] if complete else entries
    bodies = [fields.get(_FIELD, b"") for _, fields in fresh]
    if after is None:
        return decode_log(bodies, position=position, is_trimmed=not complete)
    return decode_invalidations(bodies, position=position, complete=complete)
