"""What each namespace holds and is worth in Redis: one ledger for all replicas.

Its keys share a hash tag, so that a cluster keeps them in one slot and the script that changes
them is atomic there too:

    reprise:2:{all}:bytes    sorted set: namespace -> bytes charged for it
    reprise:2:{all}:worth    sorted set: namespace -> its rank, see `value.add_worth`
    reprise:2:{all}:total    bytes of all namespaces
"""

from __future__ import annotations

from typing import Any, NamedTuple

from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.value import HALF_LIFE_S

PREFIX = "reprise:2:"
"""Of every key; another layout gets another number."""
_BYTES, _WORTH, _TOTAL = (PREFIX + "{all}:" + name for name in ("bytes", "worth", "total"))
GO_ON_IF_FULL = "redis.call('persist', KEYS[1])"
"""First line of a script that has to get through to a Redis without memory left: it refuses what
needs memory as the first write of a script, and stops none in the middle. What was removed could
otherwise neither be told nor entered."""
# A namespace that holds nothing any more disappears, and so does what rounding left of it. Where a
# key of the ledger was lost, evicted or removed by hand, the total is what the others say.
_CHARGE = f"""
{GO_ON_IF_FULL}
if redis.call('exists', KEYS[1]) == 0 then
  redis.call('del', KEYS[2], KEYS[3])
elseif redis.call('exists', KEYS[3]) == 0 then
  local total, charged = 0, redis.call('zrange', KEYS[1], 0, -1, 'withscores')
  for i = 2, #charged, 2 do
    total = total + tonumber(charged[i])
  end
  redis.call('set', KEYS[3], string.format('%.0f', total))
end
local now, change = tonumber(ARGV[1]), 0
for i = 2, #ARGV, 3 do
  local name, bytes, worth = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  local held = tonumber(redis.call('zincrby', KEYS[1], bytes, name))
  if held <= 0 then
    redis.call('zrem', KEYS[1], name)
    redis.call('zrem', KEYS[2], name)
    bytes = bytes - held
  elseif worth > 0 then
    local rank = redis.call('zscore', KEYS[2], name)
    local before = rank and 2 ^ math.min(1000, tonumber(rank) - now) or 0
    rank = math.log(before + worth) / math.log(2) + now
    redis.call('zadd', KEYS[2], string.format('%.17g', rank), name)
  end
  change = change + bytes
end
return redis.call('incrby', KEYS[3], string.format('%.0f', change))
"""


class Charge(NamedTuple):
    """A change to what a namespace holds."""

    namespace: str
    num_bytes: int
    worth: int = 0
    """What it was put to use for, see `value.add_worth`; 0 leaves its rank as it is."""


class Holdings(NamedTuple):
    """What all namespaces hold together."""

    num_bytes: int
    num_namespaces: int


def charge(client: Any, *charges: Charge) -> None:
    """Enter changes; `client` may be a pipeline."""
    if charges:
        now = repr(steady_clock.now_s() / HALF_LIFE_S)
        values = [value for entry in charges for value in entry]
        # `eval` is no method of a pipeline to a cluster.
        client.execute_command("EVAL", _CHARGE, 3, _BYTES, _WORTH, _TOTAL, now, *values)


def holdings(client: Any) -> Holdings:
    """Return what the ledger says now."""
    pipe = client.pipeline(transaction=False)
    pipe.get(_TOTAL)
    pipe.zcard(_BYTES)
    total, count = pipe.execute()
    return Holdings(int(total or 0), count)


def namespaces(client: Any) -> list[str]:
    """Return those that hold answers."""
    return [name.decode() for name in client.zrange(_BYTES, 0, -1)]


def bytes_of(client: Any, namespace: str) -> int:
    """Return what is charged for a namespace."""
    return int(client.zscore(_BYTES, namespace) or 0)


def queue_bytes_of(pipe: Any, namespace: str) -> None:
    """Ask for the same in a pipeline: one reply, a number or None."""
    pipe.zscore(_BYTES, namespace)


def largest(client: Any) -> str | None:
    """Return the namespace that holds most; None if there is none."""
    found = client.zrange(_BYTES, -1, -1)
    return found[0].decode() if found else None


def least_valuable(client: Any, count: int = 1) -> list[str]:
    """Return the namespaces of the lowest ranks, the lowest first."""
    return [name.decode() for name in client.zrange(_WORTH, 0, count - 1)]
