"""What was done to an SQLite file, in the file: so that other processes that use it can follow."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterable
from typing import Literal, NamedTuple

from reprise.retrieval.api.invalidation import (
    Invalidation,
    InvalidationPage,
    decode_invalidations,
    decode_log,
    encode_invalidation,
)

_MAX_INVALIDATIONS = 1000
LOG_LENGTH = 10_000
"""Changes that are kept for others to read."""
_PAGE = 5000


class LoggedChanges(NamedTuple):
    """What others did since the last look, the last operation for each answer."""

    added: list[tuple[str, str]]
    """(namespace, answer id)"""
    removed: list[tuple[str, str]]
    complete: bool


class ChangeLog:
    """One connection's view of the log; the caller guards the connection.

    Changes are numbered, ever upwards. Looking whether there are new ones costs one pragma: SQLite
    counts the commits of other connections.

    Args:
        length: Changes that are kept for others to read.
    """

    def __init__(self, *, length: int = LOG_LENGTH) -> None:
        self._length = length
        self._writer = uuid.uuid4().hex
        self._version: int | None = None
        self._cursor = 0
        self._num_files = 0

    def begin_anew(self) -> None:
        """Begin with another file, whose numbers mean something else."""
        self._version, self._num_files = None, self._num_files + 1

    def note(
        self, db: sqlite3.Connection, operation: Literal["+", "-"], keys: Iterable[tuple[str, str]]
    ) -> None:
        """Log that answers (namespace, id) were put (+) or removed (-)."""
        rows = [(self._writer, operation, namespace, answer_id) for namespace, answer_id in keys]
        if not rows:
            return
        db.executemany(
            "insert into changes (writer, operation, namespace, answer_id) values (?, ?, ?, ?)",
            rows,
        )
        db.execute(
            "delete from changes where change_id <= (select max(change_id) from changes) - ?",
            (self._length,),
        )

    def announce(self, db: sqlite3.Connection, invalidation: Invalidation) -> None:
        """Add an invalidation, if it is not there."""
        db.execute(
            "insert into invalidations (invalidation) select ?1"
            " where not exists (select 1 from invalidations where invalidation = ?1)",
            (encode_invalidation(invalidation),),
        )
        db.execute(
            "delete from invalidations"
            " where change_id <= (select max(change_id) from invalidations) - ?",
            (_MAX_INVALIDATIONS,),
        )

    def changes(self, db: sqlite3.Connection, *, anew: bool) -> LoggedChanges:
        """Return what others did since the last call; the first, and one with `anew`, begins
        now."""
        version = _scalar(db, "pragma data_version")
        if anew or self._version is None:
            self._cursor = _last(db, "changes")
            self._version = version
            return LoggedChanges([], [], complete=True)
        if version == self._version:
            return LoggedChanges([], [], complete=True)
        complete = _is_complete(db, "changes", self._cursor)
        rows = db.execute(
            "select change_id, writer, operation, namespace, answer_id from changes"
            " where change_id > ? order by change_id limit ?",
            (self._cursor, _PAGE),
        ).fetchall()
        if len(rows) < _PAGE:
            self._version = version
        if rows:
            self._cursor = rows[-1][0]
        latest = {(row[3], row[4]): row[2] for row in rows if row[1] != self._writer}
        added = [key for key, operation in latest.items() if operation == "+"]
        removed = [key for key, operation in latest.items() if operation == "-"]
        return LoggedChanges(added, removed, complete)

    def invalidations(self, db: sqlite3.Connection, after: str | None) -> InvalidationPage:
        """Return the invalidations beyond a position, see `Tier.invalidations`."""
        file = f"@{self._num_files}" if self._num_files else ""
        last = f"{_last(db, 'invalidations')}{file}"
        if after == last:
            return InvalidationPage(position=last)
        # Of this file, or else it says nothing of what there is.
        number = (after or "").removesuffix(file) if (after or "").endswith(file) else ""
        cursor = int(number) if number.isdecimal() else 0
        complete = _is_complete(db, "invalidations", cursor)
        rows = db.execute(
            "select invalidation from invalidations where change_id > ? order by change_id",
            (cursor,),
        ).fetchall()
        bodies = [row[0] for row in rows]
        if after is None:
            return decode_log(bodies, position=last, is_trimmed=not complete)
        complete = complete and number.isdecimal()
        return decode_invalidations(bodies, position=last, complete=complete)


def _scalar(db: sqlite3.Connection, query: str) -> int:
    return int(db.execute(query).fetchone()[0] or 0)


def _last(db: sqlite3.Connection, table: str) -> int:
    # Of autoincrement: it does not go back when rows are deleted.
    row = db.execute("select seq from sqlite_sequence where name = ?", (table,)).fetchone()
    return 0 if row is None else int(row[0])


def _is_complete(db: sqlite3.Connection, table: str, cursor: int) -> bool:
    """Return whether all rows after `cursor` are still there."""
    last = _last(db, table)
    if last <= cursor:
        return last == cursor
    return _scalar(db, f"select min(change_id) from {table}") <= cursor + 1
