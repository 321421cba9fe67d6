"""Answers in one file, so that a restart on the same machine is warm."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .answer import Answer
from .change_log import ChangeLog
from .invalidation import Invalidation, InvalidationPage
from .record import RecordReader, encode_record
from .tier import TextOf, Tier, TierChanges, TierError, Uses, with_uses

_PAGE = 500
_SCHEMA = """
create table if not exists answers (
  namespace text not null,
  answer_id text not null,
  exact_key blob,
  created_s real not null,
  record blob not null,
  primary key (namespace, answer_id)
) without rowid;
create index if not exists by_exact_key on answers (namespace, exact_key)
  where exact_key is not null;
create index if not exists by_age on answers (created_s);
create table if not exists credits (
  namespace text not null,
  answer_id text not null,
  uses integer not null,
  accepted_tokens integer not null,
  primary key (namespace, answer_id)
) without rowid;
"""


class SqliteTier(Tier):
    """A tier in an SQLite file; thread-safe, and safe to share between processes.

    Args:
        path: The file; its folder must exist.
        ttl_s: Age in seconds at which an answer is gone; None for never.
        timeout_s: How long to wait for another process's write.

    Raises:
        TierError: The file cannot be opened.
    """

    name = "sqlite"

    def __init__(
        self, path: Path | str, *, ttl_s: float | None = None, timeout_s: float = 1.0
    ) -> None:
        self._ttl_s = ttl_s
        self._reader = RecordReader(str(path))
        self._lock = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=timeout_s, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            # A power cut may lose the last answers, never damage the file: a cache needs no more.
            self._db.execute("pragma synchronous=normal")
            # What is removed is overwritten, not only no longer found.
            self._db.execute("pragma secure_delete=on")
            self._db.executescript(_SCHEMA)
            self._log = ChangeLog(self._db)
            self._wal_holds_forgotten = False
            if ttl_s is not None:
                self._delete_expired(self._db)
            self._db.commit()
        except sqlite3.Error as error:
            raise TierError(f"sqlite file {path}: {error}") from error

    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        rows = [
            (a.namespace, a.answer_id, a.exact_key, a.created_s, encode_record(a)) for a in answers
        ]
        with self._session() as db:
            db.executemany("insert or replace into answers values (?, ?, ?, ?, ?)", rows)
            db.executemany(
                "insert into credits values (?, ?, ?, ?)"
                " on conflict (namespace, answer_id) do update set"
                " uses = max(uses, excluded.uses),"
                " accepted_tokens = max(accepted_tokens, excluded.accepted_tokens)",
                [
                    (a.namespace, a.answer_id, a.uses, a.accepted_tokens)
                    for a in answers
                    if a.uses or a.accepted_tokens
                ],
            )
            self._log.note(db, "+", [(a.namespace, a.answer_id) for a in answers])
        return []

    def credit(self, namespace: str, earned: Mapping[str, Uses]) -> None:
        with self._session() as db:
            db.executemany(
                "insert into credits select namespace, answer_id, ?, ? from answers"
                " where namespace = ? and answer_id = ?"
                " on conflict (namespace, answer_id) do update set"
                " uses = uses + excluded.uses,"
                " accepted_tokens = accepted_tokens + excluded.accepted_tokens",
                [(*uses, namespace, answer_id) for answer_id, uses in earned.items()],
            )

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        removed = 0
        with self._session() as db:
            for answer_id in answer_ids:
                key = (namespace, answer_id)
                db.execute("delete from credits where namespace = ? and answer_id = ?", key)
                removed += db.execute(
                    "delete from answers where namespace = ? and answer_id = ?", key
                ).rowcount
            self._log.note(db, "-", [(namespace, answer_id) for answer_id in answer_ids])
        return removed

    def answer_ids(self, namespace: str) -> list[str]:
        with self._session() as db:
            rows = db.execute("select answer_id from answers where namespace = ?", (namespace,))
            return [row[0] for row in rows]

    def forget(
        self, invalidation: Invalidation, *, text_of: TextOf = lambda answer: answer.prompt_text
    ) -> list[tuple[str, str]]:
        self.expire()  # what is past its time is no answer any more, and not to be counted
        gone = super().forget(invalidation, text_of=text_of)
        self._wal_holds_forgotten = True
        self._empty_wal()
        return gone

    def announce(self, invalidation: Invalidation) -> None:
        with self._session() as db:
            self._log.announce(db, invalidation)

    def invalidations(self, after: str | None) -> InvalidationPage:
        with self._session() as db:
            page = self._log.invalidations(db, after)
        # Whoever carried it out may not have been able to empty it while we read.
        self._wal_holds_forgotten |= bool(page.invalidations)
        return page

    def changes(self, *, anew: bool = False) -> TierChanges:
        with self._session() as db:
            logged = self._log.changes(db, anew=anew)
        added = [answer for key in logged.added if (answer := self._answer(*key)) is not None]
        return TierChanges(tuple(added), tuple(logged.removed), logged.complete)

    def expire(self) -> None:
        if self._ttl_s is not None:
            with self._session() as db:
                self._delete_expired(db)
        if self._wal_holds_forgotten:
            self._empty_wal()

    def find_exact(self, namespace: str, exact_key: bytes) -> Answer | None:
        with self._session() as db:
            row = db.execute(
                "select record from answers where namespace = ? and exact_key = ?"
                " and created_s >= ? order by created_s desc limit 1",
                (namespace, exact_key, self._oldest_s()),
            ).fetchone()
        return None if row is None else self._reader.read(row[0], namespace=namespace)

    def answers(self, namespace: str) -> Iterator[Answer]:
        last = ""
        while True:
            with self._session() as db:
                rows = db.execute(
                    "select answer_id, record, coalesce(uses, 0), coalesce(accepted_tokens, 0)"
                    " from answers left join credits using (namespace, answer_id)"
                    " where namespace = ? and answer_id > ? and created_s >= ?"
                    " order by answer_id limit ?",
                    (namespace, last, self._oldest_s(), _PAGE),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            for _, record, uses, accepted_tokens in rows:
                answer = self._reader.read(record, namespace=namespace)
                if answer is not None:
                    yield with_uses(answer, Uses(uses, accepted_tokens))

    def namespaces(self) -> list[str]:
        with self._session() as db:
            return [row[0] for row in db.execute("select distinct namespace from answers")]

    @property
    def num_damaged(self) -> int:
        return self._reader.num_damaged

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _answer(self, namespace: str, answer_id: str) -> Answer | None:
        with self._session() as db:
            row = db.execute(
                "select record, coalesce(uses, 0), coalesce(accepted_tokens, 0)"
                " from answers left join credits using (namespace, answer_id)"
                " where namespace = ? and answer_id = ? and created_s >= ?",
                (namespace, answer_id, self._oldest_s()),
            ).fetchone()
        answer = None if row is None else self._reader.read(row[0], namespace=namespace)
        return None if answer is None else with_uses(answer, Uses(*row[1:]))

    def _delete_expired(self, db: sqlite3.Connection) -> None:
        gone = db.execute(
            "delete from answers where created_s < ? returning namespace, answer_id",
            (self._oldest_s(),),
        ).fetchall()
        db.executemany("delete from credits where namespace = ? and answer_id = ?", gone)
        self._wal_holds_forgotten |= bool(gone)

    def _empty_wal(self) -> None:
        """Move what the write-ahead log holds into the file and leave nothing there: it still has
        the pages as they were. Readers in other processes may stand in the way for a moment."""
        with self._lock:
            try:
                busy = self._db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
            except sqlite3.Error:
                busy = 1
            self._wal_holds_forgotten = bool(busy)

    def _oldest_s(self) -> float:
        return 0.0 if self._ttl_s is None else time.time() - self._ttl_s

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._db:  # commits, or rolls back
                    yield self._db
            except sqlite3.Error as error:
                raise TierError(f"sqlite: {error}") from error
