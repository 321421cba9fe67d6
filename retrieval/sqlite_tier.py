"""Answers in one file, so that a restart on the same machine is warm."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .answer import Answer
from .private_files import claim_file
from .record import RecordReader, encode_record
from .steady_clock import now_s
from .tier import Tier, TierError, Uses, with_uses

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
            # Also its -wal and -shm, which SQLite gives the same mode.
            claim_file(Path(path))
            self._db = sqlite3.connect(path, timeout=timeout_s, check_same_thread=False)
            self._db.execute("pragma journal_mode=wal")
            # A power cut may lose the last answers, never damage the file: a cache needs no more.
            self._db.execute("pragma synchronous=normal")
            self._db.executescript(_SCHEMA)
            if ttl_s is not None:
                # What was written by a clock that was ahead would outlive the others.
                self._db.execute(
                    "update answers set created_s = ?1 where created_s > ?1", (now_s(),)
                )
                self._db.execute("delete from answers where created_s < ?", (self._oldest_s(),))
                self._db.execute(
                    "delete from credits where not exists (select 1 from answers"
                    " where namespace = credits.namespace and answer_id = credits.answer_id)"
                )
            self._db.commit()
        except (sqlite3.Error, OSError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise TierError(f"sqlite file {path}: {reason}") from error

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
        return removed

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

    def _oldest_s(self) -> float:
        return 0.0 if self._ttl_s is None else now_s() - self._ttl_s

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._db:  # commits, or rolls back
                    yield self._db
            except sqlite3.Error as error:
                raise TierError(f"sqlite: {error}") from error
