"""The one stream in Redis in which replicas announce to each other what joined and left.

An entry has the fields `op` (+ or -), `ns` (the namespace), `id` (the answer's) and, of what
joined, `key` (the end of its record's key).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from reprise.retrieval.tiers.redis.redis_ledger import GO_ON_IF_FULL, PREFIX
from reprise.retrieval.tiers.redis.stream_entry import (
    ADDED,
    REMOVED,
    StreamEntry,
    read_entries,
)

_STREAM = PREFIX + "{all}:stream"
_PAGE = 500
START = "0"
"""Before the first entry."""
_ANNOUNCE_REMOVED = f"""
{GO_ON_IF_FULL}
for i = 4, #ARGV do
  redis.call('xadd', KEYS[1], 'MAXLEN', '~', ARGV[1], '*',
    'op', ARGV[2], 'ns', ARGV[3], 'id', ARGV[i], 'key', '')
end
"""


class Change(NamedTuple):
    """An answer joined or left."""

    namespace: str
    answer_id: str
    suffix: bytes | None
    """Of the key of its record; None if it left."""


class Page(NamedTuple):
    """Some entries of the stream."""

    changes: list[Change]
    num_skipped: int
    """Entries that say nothing that this version understands."""
    cursor: str
    """Where to read on."""


def announce_added(pipe: Any, namespace: str, answer_id: str, suffix: str, *, length: int) -> None:
    """Add an entry, and let the oldest beyond about `length` go."""
    pipe.xadd(
        _STREAM,
        {"op": ADDED, "ns": namespace, "id": answer_id, "key": suffix},
        maxlen=length,
        approximate=True,
    )


def announce_removed(pipe: Any, namespace: str, answer_ids: Iterable[str], *, length: int) -> None:
    """Add an entry for each answer, whether or not Redis has memory left."""
    # `eval` is no method of a pipeline to a cluster.
    pipe.execute_command(
        "EVAL", _ANNOUNCE_REMOVED, 1, _STREAM, length, REMOVED, namespace, *answer_ids
    )


def last_id(client: Any) -> str:
    """Return the cursor after all that is there now."""
    latest = client.xrevrange(_STREAM, count=1)
    return latest[0][0].decode() if latest else START


def read(client: Any, cursor: str) -> Page:
    """Return the page after the cursor, the oldest first; one round trip however many
    namespaces."""
    reply = client.xread({_STREAM: cursor}, count=_PAGE) or []
    pairs = reply.items() if isinstance(reply, dict) else reply
    changes: list[Change] = []
    num_skipped = 0
    for _, entries in pairs:
        # RESP3 nests the entries once more.
        flat = entries[0] if entries and isinstance(entries[0], list) else entries
        known, last, skipped = read_entries(flat)
        found = [_change_of(entry) for entry in known]
        changes += [change for change in found if change is not None]
        num_skipped += skipped + found.count(None)
        cursor = last or cursor
    return Page(changes, num_skipped, cursor)


def has_gap(client: Any, cursor: str, *, length: int) -> bool:
    """Return whether entries after `cursor` may have been trimmed from the stream of about
    `length`, or were lost with a master that failed."""
    if cursor == START:
        return bool(client.xlen(_STREAM) >= length)
    return not client.xrange(_STREAM, min=cursor, max=cursor)


def has_gone_back(client: Any, cursor: str) -> bool:
    """Return whether the stream ends before `cursor`: it was lost with a master that failed, or by
    a restart. What joins it may have lower names, and would not be read."""
    return _number_of(last_id(client)) < _number_of(cursor)


def _number_of(entry_id: str) -> tuple[int, ...]:
    return tuple(map(int, entry_id.split("-")))


def _change_of(entry: StreamEntry) -> Change | None:
    namespace = entry.fields.get("ns")
    if namespace is None:
        return None
    return Change(namespace, entry.answer_id, entry.key if entry.operation == ADDED else None)
