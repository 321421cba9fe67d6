"""One entry of the stream in which replicas announce changes to each other.

Replicas of several versions may share a stream, and anybody with access to Redis may write to it:
what is not understood is skipped, and is never taken for a removal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

ADDED, REMOVED = "+", "-"
VERSION = 1
"""Of the fields; an entry that names a higher one was written by a newer replica."""


class StreamEntry(NamedTuple):
    """What joined or left."""

    operation: str
    """`ADDED` or `REMOVED`."""
    answer_id: str
    key: bytes
    """Of the answer's record; empty for a removal."""
    fields: dict[str, str]
    """All fields but the key, as text."""


def read_entry(fields: object, *, key_prefix: str = "") -> StreamEntry | None:
    """Read an entry's fields (bytes by bytes); None if it is not one that we know.

    A key that does not begin with `key_prefix` is another namespace's, or none of ours.
    """
    if not isinstance(fields, Mapping):
        return None  # a deleted entry has none
    try:
        key = bytes(fields.get(b"key", b""))
        text = {n.decode(): v.decode() for n, v in fields.items() if n != b"key"}
        version = int(text.get("v", VERSION))
    except (AttributeError, TypeError, ValueError):
        return None
    operation, answer_id = text.get("op"), text.get("id")
    if version > VERSION or not answer_id or operation not in (ADDED, REMOVED):
        return None
    if operation == ADDED and not (key and key.startswith(key_prefix.encode())):
        return None
    return StreamEntry(operation, answer_id, key, text)


def read_entries(
    entries: Iterable[tuple[bytes, object]], *, key_prefix: str = ""
) -> tuple[list[StreamEntry], str | None, int]:
    """Read a stream's reply.

    Returns:
        Entries in their order, the id of the last one read (known or not; None: there was none),
        from which to go on reading, and how many were skipped.
    """
    known: list[StreamEntry] = []
    last_id, skipped = None, 0
    for entry_id, fields in entries:
        last_id = entry_id.decode()
        entry = read_entry(fields, key_prefix=key_prefix)
        if entry is None:
            skipped += 1
        else:
            known.append(entry)
    return known, last_id, skipped
