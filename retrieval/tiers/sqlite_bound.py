"""How large an SQLite file and its write-ahead log become, and how much is written at a time."""

from __future__ import annotations

import sqlite3

from reprise.retrieval.tiers.sqlite_schema import number_of

# Of the bound, what the write-ahead log may take beside the file: it is begun anew at a quarter of
# that, and the rest is room for one transaction, which is kept small enough for it.
_LOG_SHARE = 1 / 4
_MAX_LOG_BYTES = 16 << 20
_LOG_BYTES_PER_ANSWER = 32 << 10
_MAX_BATCH = 128
_BATCH_SHARE = 1 / 64


class SqliteBound:
    """Has SQLite itself keep a file and its log within a bound.

    Args:
        max_bytes: Of both together; None: none.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self.batch_bytes = 1 << 40
        """Most bytes of answers to be written in one transaction."""
        self.batch_answers = _MAX_BATCH
        """Most answers to be written, or removed, in one transaction."""
        self._log_bytes = self._file_bytes = 0
        if max_bytes is None:
            return
        self._log_bytes = min(_MAX_LOG_BYTES, int(_LOG_SHARE * max_bytes))
        self._file_bytes = max_bytes - self._log_bytes
        self.batch_bytes = int(_BATCH_SHARE * max_bytes)
        self.batch_answers = min(_MAX_BATCH, max(1, self._log_bytes // _LOG_BYTES_PER_ANSWER))

    @property
    def is_set(self) -> bool:
        """Whether there is a bound."""
        return self._file_bytes > 0

    def has_room(self, db: sqlite3.Connection, num_bytes: int) -> bool:
        """Return whether so many bytes of the file are free or may still be added to it, beside a
        reserve.

        Rows fill pages by three quarters or so, and indexes split: a batch may need twice its size.
        """
        if not self.is_set:
            return True
        used = number_of(db, "page_count") - number_of(db, "freelist_count")
        free_bytes = (self._max_pages(db) - used) * number_of(db, "page_size")
        return free_bytes - self.batch_bytes >= num_bytes

    def is_exceeded(self, db: sqlite3.Connection) -> bool:
        """Return whether the file is larger, by an earlier version or setting."""
        return self.is_set and number_of(db, "page_count") > self._max_pages(db)

    def shrink(self, db: sqlite3.Connection) -> None:
        """Let a file become small that has room in it."""
        if number_of(db, "auto_vacuum"):
            # Not `execute`, which leaves it after one page.
            db.executescript("pragma incremental_vacuum")
        else:
            db.execute("pragma auto_vacuum=incremental")
            db.execute("vacuum")
        db.execute("pragma wal_checkpoint(truncate)").fetchall()

    def limit_log(self, db: sqlite3.Connection) -> None:
        """Let the log become no larger from now on."""
        if self.is_set:
            log_pages = self._log_bytes // number_of(db, "page_size")
            db.execute(f"pragma wal_autocheckpoint={max(1, log_pages // 4)}")
            db.execute(f"pragma journal_size_limit={self._log_bytes}")

    def limit_file(self, db: sqlite3.Connection) -> None:
        """Let the file become no larger from now on."""
        if self.is_set:
            db.execute(f"pragma max_page_count={self._max_pages(db)}")

    def _max_pages(self, db: sqlite3.Connection) -> int:
        return self._file_bytes // number_of(db, "page_size")
