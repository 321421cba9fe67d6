"""How large an SQLite file and its write-ahead log become, and how much is written at a time."""

from __future__ import annotations

import sqlite3

from reprise.retrieval.tiers.sqlite_schema import number_of

# Of the bound, what the write-ahead log may take beside the file: it is begun anew at a quarter of
# that, and the rest is room for one transaction, which is kept small enough for it.
_LOG_SHARE = 1 / 4
_MAX_LOG_BYTES = 16 << 20
_LOG_PAGES_PER_ANSWER = 8
_MAX_BATCH = 128
_BATCH_SHARE = 1 / 64


class SqliteBound:
    """Has SQLite itself keep a file and its log within a bound.

    Args:
        db: The file, opened.
        max_bytes: Of both together; None: none.
    """

    def __init__(self, db: sqlite3.Connection, max_bytes: int | None) -> None:
        self._max_pages: int | None = None
        self._page_bytes = number_of(db, "page_size")
        self.batch_bytes = 1 << 40
        """Most bytes of answers to be written in one transaction."""
        self.batch_answers = _MAX_BATCH
        """Most answers to be written, or removed, in one transaction."""
        if max_bytes is None:
            return
        log_bytes = min(_MAX_LOG_BYTES, int(_LOG_SHARE * max_bytes))
        log_pages = log_bytes // self._page_bytes
        self._max_pages = (max_bytes - log_bytes) // self._page_bytes
        self.batch_bytes = int(_BATCH_SHARE * max_bytes)
        self.batch_answers = min(_MAX_BATCH, max(1, log_pages // _LOG_PAGES_PER_ANSWER))
        db.execute(f"pragma wal_autocheckpoint={max(1, log_pages // 4)}")
        db.execute(f"pragma journal_size_limit={log_bytes}")

    @property
    def is_set(self) -> bool:
        """Whether there is a bound."""
        return self._max_pages is not None

    def has_room(self, db: sqlite3.Connection, num_bytes: int) -> bool:
        """Return whether so many bytes of the file are free or may still be added to it, beside a
        reserve.

        Rows fill pages by three quarters or so, and indexes split: a batch may need twice its size.
        """
        if self._max_pages is None:
            return True
        used = number_of(db, "page_count") - number_of(db, "freelist_count")
        return (self._max_pages - used) * self._page_bytes - self.batch_bytes >= num_bytes

    def is_exceeded(self, db: sqlite3.Connection) -> bool:
        """Return whether the file is larger, by an earlier version or setting."""
        return self._max_pages is not None and number_of(db, "page_count") > self._max_pages

    def shrink(self, db: sqlite3.Connection) -> None:
        """Let a file become small that has room in it."""
        if number_of(db, "auto_vacuum"):
            # Not `execute`, which leaves it after one page.
            db.executescript("pragma incremental_vacuum")
        else:
            db.execute("pragma auto_vacuum=incremental")
            db.execute("vacuum")
        db.execute("pragma wal_checkpoint(truncate)").fetchall()

    def hold(self, db: sqlite3.Connection) -> None:
        """Let the file become no larger from now on."""
        if self._max_pages is not None:
            db.execute(f"pragma max_page_count={self._max_pages}")
