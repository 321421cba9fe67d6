"""Answers in an SQLite file that cannot be written to, as a backup that is mounted read-only."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import TierError

_TABLES = {"answers", "credits", "namespaces"}


class SqliteReader(SqliteTier):
    """A tier to be looked at: only what reads may be called.

    Args:
        path: The file.

    Raises:
        TierError: It cannot be read, or would have to be written to first.
    """

    def __init__(self, path: Path) -> None:
        path = path.resolve()  # beside what a link leads to SQLite has its log
        super().__init__(path)
        self._log_path = path.with_name(path.name + "-wal")
        # SQLite reads a file with a log only beside a file of locks, which it would have to make.
        # Without a log nobody has the file open: it can be read as it is.
        self._has_log = self._log_path.exists() and self._log_path.stat().st_size > 0
        self._version = self._stat()
        with self._session():
            pass  # opens it

    def _open(self) -> sqlite3.Connection:
        options = "mode=ro" if self._has_log else "mode=ro&immutable=1"
        db = sqlite3.connect(
            f"file:{quote(str(self._path))}?{options}", uri=True, check_same_thread=False
        )
        try:
            names = {row[0] for row in db.execute("select name from sqlite_master")}
        except sqlite3.Error as error:
            db.close()
            reason = f"sqlite file {self._path}: {error}"
            if self._has_log:
                reason += (
                    f"; {self._path.parent} cannot be written to, and what {self._log_path.name} "
                    "holds can only be read where it can: copy both files to another folder"
                )
            raise TierError(reason) from error
        if not names >= _TABLES:
            db.close()
            raise TierError(
                f"sqlite file {self._path}: an earlier version's, or none of ours, and it cannot "
                "be written to: copy it to another folder"
            )
        return db

    def _stat(self) -> tuple[int, int, int] | None:
        """Return what tells the file from one that was written to; None: it is gone."""
        try:
            info = self._path.stat()
        except OSError:
            return None
        return info.st_ino, info.st_size, info.st_mtime_ns

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        with super()._session() as db:
            yield db
        # SQLite looks for no changes where there is no log, and would mix old pages with new ones.
        if not self._has_log and self._stat() != self._version:
            raise TierError(f"sqlite file {self._path}: it was changed while it was read")
