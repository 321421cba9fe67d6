"""Changes on their way to a remote index: the last one for each answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from reprise.retrieval.remote.remote_index import RemoteRow

Key = tuple[str, str]
"""(namespace, answer id)"""
_MAX_REMOVALS = 200_000


@dataclass(frozen=True, slots=True)
class ChangeBatch:
    """Changes to make, namespaces first."""

    namespaces: Mapping[str, float]
    """Of which all is removed that was created until then."""
    changes: Mapping[Key, RemoteRow | None]
    """None: removed."""

    def __bool__(self) -> bool:
        return bool(self.namespaces or self.changes)


class PendingChanges:
    """Rows to hold and answers to remove, oldest first; not thread-safe.

    Args:
        max_rows: Bound on rows; the oldest beyond are lost, counted.
    """

    def __init__(self, *, max_rows: int) -> None:
        self._max_rows = max_rows
        self._rows: dict[Key, RemoteRow] = {}
        self._removed: dict[Key, None] = {}
        self._namespaces: dict[str, float] = {}
        self.num_lost = 0
        """Rows and removals that are never made."""

    def __bool__(self) -> bool:
        return bool(self._rows or self._removed or self._namespaces)

    def put(self, rows: Iterable[RemoteRow]) -> None:
        """Have rows held."""
        for row in rows:
            key = (row.namespace, row.answer_id)
            self._removed.pop(key, None)
            self._rows.pop(key, None)
            self._rows[key] = row
        while len(self._rows) > self._max_rows:
            del self._rows[next(iter(self._rows))]
            self.num_lost += 1

    def remove(self, keys: Iterable[Key]) -> None:
        """Have answers removed, whether or not they were held."""
        for key in keys:
            self._rows.pop(key, None)
            self._removed[key] = None
        while len(self._removed) > _MAX_REMOVALS:
            del self._removed[next(iter(self._removed))]
            self.num_lost += 1

    def drop(self, keys: Iterable[Key]) -> None:
        """Have rows that wait not held after all."""
        for key in keys:
            self._rows.pop(key, None)

    def remove_namespace(self, namespace: str, *, created_until_s: float) -> None:
        """Have all of a namespace removed that was put before, or by others and created until
        then."""
        for waiting in (self._rows, self._removed):
            for key in [key for key in waiting if key[0] == namespace]:
                del waiting[key]
        self._remove_until(namespace, created_until_s)

    def take(self, count: int) -> ChangeBatch:
        """Return the oldest, removals before rows, about `count`; they are gone from here."""
        namespaces, self._namespaces = self._namespaces, {}
        removed, rows = list(islice(self._removed, count)), list(islice(self._rows, count))
        changes: dict[Key, RemoteRow | None] = {key: self._removed.pop(key) for key in removed}
        changes.update((key, self._rows.pop(key)) for key in rows)
        return ChangeBatch(namespaces, changes)

    def put_back(self, batch: ChangeBatch) -> None:
        """Let changes that failed wait again, but for what others came after."""
        later = set(self._namespaces)
        for key, row in batch.changes.items():
            if key[0] in later or key in self._rows or key in self._removed:
                continue
            if row is None:
                self.remove([key])
            else:
                self.put([row])
        for namespace, created_until_s in batch.namespaces.items():
            self._remove_until(namespace, created_until_s)

    def _remove_until(self, namespace: str, created_until_s: float) -> None:
        until_s = self._namespaces.get(namespace, created_until_s)
        self._namespaces[namespace] = max(until_s, created_until_s)
