"""The tables of an SQLite tier's file, and how it is opened, earlier versions' files too."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from reprise.retrieval.host.private_files import claim_file
from reprise.retrieval.tiers.value import add_worth, rank_of

# The exact key is an earlier version's: nobody asks for it any more.
_COLUMNS = {"namespace", "answer_id", "exact_key", "created_s", "record", "rank"}
_SCHEMA = """
create table if not exists answers (
  namespace text not null,
  answer_id text not null,
  created_s real not null,
  record blob not null,
  rank real not null default 0,
  primary key (namespace, answer_id)
);
drop index if exists by_exact_key;
create index if not exists by_age on answers (created_s);
create index if not exists by_rank on answers (namespace, rank);
create table if not exists credits (
  namespace text not null,
  answer_id text not null,
  uses integer not null,
  accepted_tokens integer not null,
  primary key (namespace, answer_id)
) without rowid;
create table if not exists namespaces (
  namespace text primary key,
  num_bytes integer not null,
  rank real not null default -1e6
) without rowid;
create index if not exists by_size on namespaces (num_bytes);
create index if not exists by_worth on namespaces (rank);
create table if not exists expiries (
  namespace text not null,
  answer_id text not null,
  expires_s real not null,
  primary key (namespace, answer_id)
) without rowid;
create index if not exists by_expiry on expiries (expires_s);
create trigger if not exists expiry_left after delete on answers begin
  delete from expiries where namespace = old.namespace and answer_id = old.answer_id;
end;
create trigger if not exists answer_joined after insert on answers begin
  insert into namespaces (namespace, num_bytes) values (new.namespace, length(new.record) + 400)
    on conflict (namespace) do update set num_bytes = num_bytes + excluded.num_bytes;
end;
create trigger if not exists answer_changed after update of record on answers begin
  update namespaces set num_bytes = num_bytes + length(new.record) - length(old.record)
    where namespace = new.namespace;
end;
create trigger if not exists answer_left after delete on answers begin
  update namespaces set num_bytes = num_bytes - length(old.record) - 400
    where namespace = old.namespace;
  delete from namespaces where namespace = old.namespace and num_bytes <= 0;
end;
create table if not exists changes (
  change_id integer primary key autoincrement,
  writer text not null,
  operation text not null,
  namespace text not null,
  answer_id text not null
);
create table if not exists invalidations (
  change_id integer primary key autoincrement,
  invalidation blob not null
);
"""
# Of (seconds, namespace, answer id): the answer was used then.
RANK = """
update answers set rank = rank_of(
  coalesce((select uses from credits c
    where c.namespace = answers.namespace and c.answer_id = answers.answer_id), 0),
  coalesce((select accepted_tokens from credits c
    where c.namespace = answers.namespace and c.answer_id = answers.answer_id), 0),
  length(record), ?)
where namespace = ? and answer_id = ?
"""
# Of (worth, seconds, namespace): it has come to more worth then.
WORTH = "update namespaces set rank = add_worth(rank, ?, ?) where namespace = ?"


def open_database(path: Path, *, timeout_s: float) -> sqlite3.Connection:
    """Open the file, readable by this user only, and create or upgrade its tables.

    Raises:
        sqlite3.Error: It is none of ours, a newer version's, or cannot be written.
        OSError: It cannot be created.
    """
    # Also its -wal and -shm, which SQLite gives the same mode.
    claim_file(path)
    db = sqlite3.connect(path, timeout=timeout_s, check_same_thread=False)
    try:
        _prepare(db)
    except BaseException:
        db.close()  # or what it has begun would lock others out
        raise
    return db


def _prepare(db: sqlite3.Connection) -> None:
    # Before there are tables: pages that become free can be given back.
    db.execute("pragma auto_vacuum=incremental")
    db.execute("pragma journal_mode=wal")
    # A power cut may lose the last answers, never damage the file: a cache needs no more.
    db.execute("pragma synchronous=normal")
    # What is replaced leaves, as triggers see it.
    db.execute("pragma recursive_triggers=on")
    db.create_function("rank_of", 4, _rank_of, deterministic=True)
    db.create_function("add_worth", 3, add_worth, deterministic=True)
    _upgrade(db)
    # What is removed is overwritten, not only no longer found.
    db.execute("pragma secure_delete=on")
    db.executescript(_SCHEMA)


def _upgrade(db: sqlite3.Connection) -> None:
    """Let a file of an earlier version have what this one needs."""
    columns = [row[1] for row in db.execute("pragma table_info(answers)")]
    if unknown := set(columns) - _COLUMNS:
        raise sqlite3.DatabaseError(f"a newer version's: unknown columns {sorted(unknown)}")
    if not columns or "rank" in columns:
        return
    db.execute("alter table answers add column rank real not null default 0")
    db.executescript(_SCHEMA)
    db.execute(
        "insert or replace into namespaces (namespace, num_bytes)"
        " select namespace, sum(length(record) + 400) from answers group by namespace"
    )
    db.execute("update answers set rank = rank_of(0, 0, length(record), created_s)")
    db.commit()


def _rank_of(uses: int, accepted_tokens: int, num_bytes: int, used_s: float) -> float:
    return rank_of(uses=uses, accepted_tokens=accepted_tokens, num_bytes=num_bytes, used_s=used_s)


def number_of(db: sqlite3.Connection, pragma: str) -> int:
    return int(db.execute(f"pragma {pragma}").fetchone()[0])
