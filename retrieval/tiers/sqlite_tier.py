"""Answers in one file, so that a restart on the same machine is warm."""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from reprise.retrieval.api.answer import EXACT_PREFIX, Answer, exact_id
from reprise.retrieval.api.invalidation import Invalidation, InvalidationPage
from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.change_log import LOG_LENGTH, ChangeLog
from reprise.retrieval.tiers.record import RecordReader, encode_record
from reprise.retrieval.tiers.sqlite_bound import SqliteBound
from reprise.retrieval.tiers.sqlite_schema import RANK, WORTH, open_database
from reprise.retrieval.tiers.tier import (
    TextOf,
    Tier,
    TierChanges,
    TierDamagedError,
    TierError,
    UsageCounts,
    with_usage,
)

_PAGE = 500
_MIN_BYTES = 1 << 20
# An answer's row beside its record: ids, key, rank and what the indexes repeat of them.
_OVERHEAD_BYTES = 400


class SqliteTier(Tier):
    """A tier in an SQLite file; thread-safe, and safe to share between processes.

    Opens the file on first use, and tries again at each call until that works: a disk that is full
    or read-only at start is one that becomes so later.

    Args:
        path: The file; its folder must exist.
        ttl_s: Age in seconds at which an answer is gone; None for never.
        timeout_s: How long to wait for another process's write.
        max_bytes: Bound on the file and its write-ahead log together; answers of the least value
            leave the namespace that holds most. None leaves the trimming to others.
        max_namespaces: Bound on the namespaces; the least valuable leaves as a whole.

    Raises:
        ValueError: The bound is too small for a file.
    """

    name = "sqlite"

    def __init__(
        self,
        path: Path | str,
        *,
        ttl_s: float | None = None,
        timeout_s: float = 1.0,
        max_bytes: int | None = None,
        max_namespaces: int | None = None,
    ) -> None:
        if max_bytes is not None and max_bytes < _MIN_BYTES:
            raise ValueError(f"max_bytes must be at least {_MIN_BYTES}, got {max_bytes}")
        self._path, self._timeout_s = Path(path), timeout_s
        self._ttl_s, self._max_namespaces = ttl_s, max_namespaces
        self._reader = RecordReader(str(path))
        # The log takes its share of a small bound, and no more.
        length = LOG_LENGTH if max_bytes is None else min(LOG_LENGTH, max_bytes // 2048)
        self._log = ChangeLog(length=length)
        self._bound = SqliteBound(max_bytes)
        self._wal_holds_forgotten = False
        self._opened: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._is_another = False
        self._is_closed = False
        self._lock = threading.Lock()

    def put(self, answers: Sequence[Answer]) -> list[tuple[str, str]]:
        left: list[tuple[str, str]] = []
        batch: list[tuple[Answer, bytes]] = []
        num_bytes, bound = 0, self._bound
        for answer in answers:
            record = encode_record(answer)
            size = len(record) + _OVERHEAD_BYTES
            if size > bound.batch_bytes:
                left += [(answer.namespace, answer.stored_id)]
                continue
            if num_bytes + size > bound.batch_bytes or len(batch) == bound.batch_answers:
                left += self._put(batch, num_bytes)
                batch, num_bytes = [], 0
            batch.append((answer, record))
            num_bytes += size
        if batch:
            left += self._put(batch, num_bytes)
        return left

    def replace(self, answers: Sequence[Answer]) -> int:
        replaced = 0
        with self._session() as db:
            for answer in answers:
                replaced += db.execute(
                    "update answers set record = ?"
                    " where namespace = ? and answer_id = ? and created_s >= ?",
                    (
                        encode_record(answer),
                        *(answer.namespace, answer.stored_id, self._oldest_s()),
                    ),
                ).rowcount
        return replaced

    def record_usage(self, namespace: str, usage: Mapping[str, UsageCounts]) -> None:
        with self._session() as db:
            db.executemany(
                "insert into credits select namespace, answer_id, ?, ? from answers"
                " where namespace = ? and answer_id = ?"
                " on conflict (namespace, answer_id) do update set"
                " uses = uses + excluded.uses,"
                " accepted_tokens = accepted_tokens + excluded.accepted_tokens",
                [(*uses, namespace, answer_id) for answer_id, uses in usage.items()],
            )
            now_s = steady_clock.now_s()
            db.executemany(RANK, [(now_s, namespace, answer_id) for answer_id in usage])
            worth = sum(max(0, sum(uses)) for uses in usage.values())
            db.executemany(WORTH, [(worth, now_s, namespace)] if worth else [])

    def remove(self, namespace: str, answer_ids: Sequence[str]) -> int:
        removed = 0
        with self._session() as db:
            for answer_id in answer_ids:
                key = (namespace, answer_id)
                db.execute("delete from credits where namespace = ? and answer_id = ?", key)
                removed += db.execute(
                    "delete from answers where namespace = ? and answer_id = ?", key
                ).rowcount
            self._note(db, "-", [(namespace, answer_id) for answer_id in answer_ids])
        return removed

    def answer_ids(self, namespace: str) -> list[str]:
        with self._session() as db:
            rows = db.execute("select answer_id from answers where namespace = ?", (namespace,))
            return [row[0] for row in rows]

    def forget(
        self,
        invalidation: Invalidation,
        *,
        text_of: TextOf = lambda answer: answer.prompt_text,
        removed: dict[tuple[str, str], None] | None = None,
    ) -> list[tuple[str, str]]:
        self.expire()  # what is past its time is no answer any more, and not to be counted
        gone = super().forget(invalidation, text_of=text_of, removed=removed)
        self._wal_holds_forgotten = True
        self._empty_wal()
        return gone

    def has_gone_back(self) -> bool:
        with self._lock:
            is_another, self._is_another = self._is_another, False
        return is_another

    def announce(self, invalidation: Invalidation) -> None:
        with self._session() as db:
            self._log.announce(db, invalidation)

    def invalidations(self, after: str | None) -> InvalidationPage:
        with self._session() as db:
            page = self._log.invalidations(db, after)
        # Whoever carried it out may not have been able to empty it while we read.
        self._wal_holds_forgotten |= bool(page.invalidations)
        return page

    def changes(self, *, anew: bool = False, wants_added: bool = True) -> TierChanges:
        with self._session() as db:
            logged = self._log.changes(db, anew=anew)
        keys = logged.added if wants_added else []
        added = [a for namespace, answer_id in keys for a in self.find(namespace, [answer_id])]
        return TierChanges(tuple(added), tuple(logged.removed), logged.complete)

    def expire(self) -> None:
        with self._session() as db:
            self._delete_expired(db)
        if self._wal_holds_forgotten:
            self._empty_wal()

    def answers(self, namespace: str) -> Iterator[Answer]:
        return self._all(namespace, exact=False)

    def valuable(self, namespace: str) -> Iterator[Answer]:
        begin = 0
        while True:
            with self._session() as db:
                rows = db.execute(
                    "select answer_id from answers where namespace = ?"
                    " order by rank desc limit ? offset ?",
                    (namespace, _PAGE, begin),
                ).fetchall()
            if not rows:
                return
            found = {each.answer_id: each for each in self.find(namespace, [r[0] for r in rows])}
            yield from (found[row[0]] for row in rows if row[0] in found)
            begin += _PAGE

    def find(self, namespace: str, answer_ids: Sequence[str]) -> list[Answer]:
        return self._found(namespace, [i for i in answer_ids if not i.startswith(EXACT_PREFIX)])

    def exact_answers(self, namespace: str) -> Iterator[Answer]:
        return self._all(namespace, exact=True)

    def find_exact(self, namespace: str, exact_keys: Sequence[bytes]) -> list[Answer]:
        return self._found(namespace, [exact_id(key) for key in exact_keys])

    def _found(self, namespace: str, stored_ids: Sequence[str]) -> list[Answer]:
        with self._session() as db:
            rows = db.execute(
                "select record, coalesce(uses, 0), coalesce(accepted_tokens, 0)"
                " from answers left join credits using (namespace, answer_id)"
                " where namespace = ? and created_s >= ?"
                f" and answer_id in ({', '.join('?' * len(stored_ids))})",
                (namespace, self._oldest_s(), *stored_ids),
            ).fetchall()
        found = [(self._reader.read(row[0], namespace=namespace), row[1:]) for row in rows]
        return [with_usage(answer, UsageCounts(*uses)) for answer, uses in found if answer]

    def _all(self, namespace: str, *, exact: bool) -> Iterator[Answer]:
        last = ""
        while True:
            with self._session() as db:
                rows = db.execute(
                    "select answer_id, record, coalesce(uses, 0), coalesce(accepted_tokens, 0)"
                    " from answers left join credits using (namespace, answer_id)"
                    " where namespace = ? and answer_id > ? and created_s >= ?"
                    " and (substr(answer_id, 1, ?) = ?) = ?"
                    " order by answer_id limit ?",
                    (
                        *(namespace, last, self._oldest_s()),
                        *(len(EXACT_PREFIX), EXACT_PREFIX, exact, _PAGE),
                    ),
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            for _, record, uses, accepted_tokens in rows:
                answer = self._reader.read(record, namespace=namespace)
                if answer is not None:
                    yield with_usage(answer, UsageCounts(uses, accepted_tokens))

    def namespaces(self) -> list[str]:
        with self._session() as db:
            return [row[0] for row in db.execute("select namespace from namespaces")]

    @property
    def num_damaged(self) -> int:
        return self._reader.num_damaged

    def check(self) -> None:
        """Raise TierDamagedError if SQLite finds a page of the file damaged, one of an index too:
        answers may be readable without it, and still none can be written."""
        try:
            with self._session() as db:
                [found] = db.execute("pragma quick_check(1)").fetchone()
        except TierError as error:
            code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
            if code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise
            raise TierDamagedError(f"sqlite file {self._path}: {error.__cause__}") from error
        if found != "ok":
            raise TierDamagedError(f"sqlite file {self._path}: {found.splitlines()[-1]}")

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            if self._opened is not None:
                self._opened.close()

    def _delete_expired(self, db: sqlite3.Connection) -> None:
        gone = db.execute(
            "delete from answers where created_s < ? returning namespace, answer_id",
            (self._oldest_s(),),
        ).fetchall()
        expired = db.execute(
            "select namespace, answer_id from expiries where expires_s <= ?",
            (steady_clock.now_s(),),
        ).fetchall()
        for table in ("answers", "expiries") if expired else ():
            db.executemany(f"delete from {table} where namespace = ? and answer_id = ?", expired)
        gone += expired
        db.executemany("delete from credits where namespace = ? and answer_id = ?", gone)
        self._wal_holds_forgotten |= bool(gone)

    def _empty_wal(self) -> None:
        """Move what the write-ahead log holds into the file and leave nothing there: it still has
        the pages as they were. Readers in other processes may stand in the way for a moment."""
        with self._lock:
            try:
                busy = self._db.execute("pragma wal_checkpoint(truncate)").fetchone()[0]
            except (sqlite3.Error, TierError):
                busy = 1
            self._wal_holds_forgotten = bool(busy)

    def _put(self, batch: Sequence[tuple[Answer, bytes]], num_bytes: int) -> list[tuple[str, str]]:
        now_s = steady_clock.now_s()
        with self._session() as db:
            left = self._make_room(db, num_bytes)
            db.executemany(
                "insert or replace into answers"
                " (namespace, answer_id, created_s, record) values (?, ?, ?, ?)",
                [(a.namespace, a.stored_id, a.created_s, r) for a, r in batch],
            )
            db.executemany(
                "insert into credits values (?, ?, ?, ?)"
                " on conflict (namespace, answer_id) do update set"
                " uses = max(uses, excluded.uses),"
                " accepted_tokens = max(accepted_tokens, excluded.accepted_tokens)",
                [
                    (a.namespace, a.stored_id, a.uses, a.accepted_tokens)
                    for a, _ in batch
                    if a.uses or a.accepted_tokens
                ],
            )
            db.executemany(
                "insert or replace into expiries values (?, ?, ?)",
                [
                    (a.namespace, a.stored_id, a.expires_s)
                    for a, _ in batch
                    if a.expires_s is not None
                ],
            )
            db.executemany(RANK, [(now_s, a.namespace, a.stored_id) for a, _ in batch])
            self._note(db, "+", [(a.namespace, a.stored_id) for a, _ in batch])
            joined = Counter(a.namespace for a, _ in batch)
            db.executemany(WORTH, [(count, now_s, name) for name, count in joined.items()])
        return left + self._trim_namespaces(joined)

    def _trim_namespaces(self, joined: Counter[str]) -> list[tuple[str, str]]:
        """Let the least valuable namespaces leave, those that just joined last of all."""
        left: list[tuple[str, str]] = []
        while self._max_namespaces is not None:
            with self._session() as db:
                db.execute("begin immediate")
                count = db.execute("select count(*) from namespaces").fetchone()[0]
                if count <= self._max_namespaces:
                    break
                lowest = [
                    row[0]
                    for row in db.execute(
                        "select namespace from namespaces order by rank limit ?", (len(joined) + 1,)
                    )
                ]
                victim = next((name for name in lowest if name not in joined), lowest[0])
                left += self._leave(db, victim)
        return left

    def _leave(self, db: sqlite3.Connection, namespace: str) -> list[tuple[str, str]]:
        """Delete answers of the least value of a namespace; (namespace, id) of those."""
        gone = db.execute(
            "select namespace, answer_id from answers where namespace = ? order by rank limit ?",
            (namespace, self._bound.batch_answers),
        ).fetchall()
        for table in ("answers", "credits"):
            db.executemany(f"delete from {table} where namespace = ? and answer_id = ?", gone)
        self._note(db, "-", gone)
        if not gone:  # a row that another version left
            db.execute("delete from namespaces where namespace = ?", (namespace,))
        return gone

    def _make_room(self, db: sqlite3.Connection, num_bytes: int) -> list[tuple[str, str]]:
        """Let answers of least value leave until so many bytes fit; (namespace, id) of those."""
        left: list[tuple[str, str]] = []
        while self._bound.is_set:
            with db:  # commits, or rolls back
                db.execute("begin immediate")
                if self._bound.has_room(db, num_bytes):
                    break
                largest = db.execute(
                    "select namespace from namespaces order by num_bytes desc limit 1"
                ).fetchone()
                if largest is None:
                    break
                left += self._leave(db, largest[0])
        return left

    def _note(
        self, db: sqlite3.Connection, operation: Literal["+", "-"], keys: Iterable[tuple[str, str]]
    ) -> None:
        """Log what was put or removed, but for answers for exact hits, which nobody follows."""
        self._log.note(db, operation, [key for key in keys if not key[1].startswith(EXACT_PREFIX)])

    def _oldest_s(self) -> float:
        return 0.0 if self._ttl_s is None else steady_clock.now_s() - self._ttl_s

    @contextmanager
    def _session(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                with self._db as db:  # commits, or rolls back
                    yield db
            except sqlite3.Error as error:
                raise TierError(f"sqlite: {error}") from error

    @property
    def _db(self) -> sqlite3.Connection:
        """The file, opened if it was not; the caller holds the lock."""
        if self._is_closed:
            raise TierError("sqlite is closed")
        if self._opened is not None and self._stat_file() != self._file:
            # Removed or replaced by hand: what others say and do is in the other one.
            self._opened.close()
            self._opened, self._is_another = None, True
            self._log.begin_anew()
        if self._opened is None:
            try:
                self._opened = self._open()
                self._file = self._stat_file()
            except (sqlite3.Error, OSError) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise TierError(f"sqlite file {self._path}: {reason}") from error
        return self._opened

    def _stat_file(self) -> tuple[int, int] | None:
        """Return what tells the file at the path from another one; None: there is none."""
        try:
            info = self._path.stat()
        except FileNotFoundError:
            return None
        return info.st_dev, info.st_ino

    def _open(self) -> sqlite3.Connection:
        db = open_database(self._path, timeout_s=self._timeout_s)
        try:
            if self._ttl_s is not None:
                # What was written by a clock that was ahead would outlive the others.
                db.execute(
                    "update answers set created_s = ?1 where created_s > ?1",
                    (steady_clock.now_s(),),
                )
                self._delete_expired(db)
            db.commit()
            self._bound.limit_log(db)
            if self._bound.is_exceeded(db):
                self._make_room(db, self._bound.batch_bytes)
                self._bound.shrink(db)
            self._bound.limit_file(db)
        except BaseException:
            db.close()  # or what it has begun would lock others out
            raise
        return db
