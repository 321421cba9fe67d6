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
from reprise.retrieval.tiers.redis.redis_clock import RedisClock
from reprise.retrieval.tiers.redis.redis_ledger import GO_ON_IF_FULL, PREFIX

STREAM = PREFIX + "{all}:invalidations"
_DONE = PREFIX + "{all}:forgotten"
"""How many invalidations have been carried out."""
_FIELD = b"invalidation"
_MAX_INVALIDATIONS = 1000
_BEGINNING = "0-0"
_ANNOUNCE = f"""
for _, entry in ipairs(redis.call('xrange', KEYS[1], '-', '+')) do
  if entry[2][2] == ARGV[3] then
    return
  end
end
{GO_ON_IF_FULL}
redis.call('xadd', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', ARGV[2], ARGV[3])
"""
_COUNT = f"""
{GO_ON_IF_FULL}
return redis.call('incr', KEYS[1])
"""


def announce(client: Any, invalidation: Invalidation, *, clock: RedisClock) -> None:
    """Add an invalidation for all replicas to read, if the log does not have it; whether or not
    Redis has memory left."""
    dated = invalidation.moved(clock.ahead_s)
    entry = (_MAX_INVALIDATIONS, _FIELD, encode_invalidation(dated))
    client.execute_command("EVAL", _ANNOUNCE, 1, STREAM, *entry)


def count_done(client: Any) -> int:
    """Count an invalidation that has been carried out; how many there are now."""
    return int(client.execute_command("EVAL", _COUNT, 1, _DONE))


def num_done(client: Any) -> int:
    """Return how many invalidations have been carried out. A Redis that counts fewer than before
    was started with what it held earlier, and may hold again what was removed since."""
    return int(client.get(_DONE) or 0)


def read_invalidations(client: Any, after: str | None, *, clock: RedisClock) -> InvalidationPage:
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
        return decode_log(bodies, position=position, is_trimmed=not complete, ahead_s=clock.ahead_s)
    return decode_invalidations(bodies, position=position, complete=complete, ahead_s=clock.ahead_s)
