"""An SQLite file and its log stay within their bound, whatever is written."""

import contextlib
import sqlite3

import pytest

from reprise.retrieval import Answer
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import UsageCounts


def answer(number, *, namespace="acme", size=200):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[(number * 7919 + k * k * 31) % 60_000 for k in range(size)],
        namespace=namespace,
        answer_id=f"{number * 2654435761 % 2**32:08x}-{number}",
    )


def ids(tier, namespace):
    return {a.answer_id for a in tier.answers(namespace)}


def disk_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir() if not path.name.endswith("-shm"))


@pytest.fixture
def make_tier(tmp_path):
    made = []

    def make(**options):
        made.append(SqliteTier(tmp_path / "a.sqlite", **options))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


@pytest.mark.parametrize(("size", "num_namespaces"), [(5, 300), (200, 1), (3000, 40)])
def test_files_stay_within_their_bound(tmp_path, make_tier, size, num_namespaces):
    bound = 2 << 20
    tier, most, num_left = make_tier(max_bytes=bound), 0, 0
    for begin in range(0, (5 << 20) // (2 * size + 500), 50):
        batch = [
            answer(n, namespace=f"tenant{n % num_namespaces}", size=size)
            for n in range(begin, begin + 50)
        ]
        num_left += len(tier.put(batch))
        most = max(most, disk_bytes(tmp_path))
    assert most <= bound
    assert num_left
    # Of what may be taken, half is rows.
    held = tier._db.execute("select sum(length(record)) + 200 * count(*) from answers").fetchone()
    assert held[0] > bound / 2


def test_what_was_of_use_stays(make_tier):
    tier = make_tier(max_bytes=1 << 20)
    tier.put([answer(n) for n in range(20)])
    tier.record_usage("acme", {answer(n).answer_id: UsageCounts(1, 50) for n in range(20)})
    for begin in range(20, 1600, 40):
        tier.put([answer(n) for n in range(begin, begin + 40)])
    held = ids(tier, "acme")
    assert held >= {answer(n).answer_id for n in range(20)}
    assert 200 < len(held) < 1500
    assert tier._db.execute("select count(*) from credits").fetchone() == (20,)


def test_the_namespace_that_holds_most_gives_way(make_tier):
    tier = make_tier(max_bytes=1 << 20)
    tier.put([answer(n, namespace="small") for n in range(20)])
    for begin in range(20, 1600, 40):
        tier.put([answer(n, namespace="large") for n in range(begin, begin + 40)])
    assert len(ids(tier, "small")) == 20


def test_the_least_valuable_namespace_leaves_as_a_whole(make_tier):
    tier = make_tier(max_namespaces=5)
    for tenant in range(5):
        tier.put([answer(n, namespace=f"t{tenant}") for n in range(3)])
        if tenant != 2:
            tier.record_usage(f"t{tenant}", {answer(0).answer_id: UsageCounts(1, 20)})
    gone = tier.put([answer(1, namespace="new")])
    assert sorted(gone) == sorted(("t2", answer(n).answer_id) for n in range(3))
    assert sorted(tier.namespaces()) == ["new", "t0", "t1", "t3", "t4"]
    # The newcomer is worth least, and stays until the next one comes.
    assert tier.put([answer(1, namespace="newer")]) == [("new", answer(1).answer_id)]


def test_what_left_is_told(make_tier):
    tier, put, told = make_tier(max_bytes=1 << 20), set(), set()
    for begin in range(0, 1500, 50):
        batch = [answer(n) for n in range(begin, begin + 50)]
        told |= set(tier.put(batch))
        put |= {("acme", a.answer_id) for a in batch}
    assert {("acme", i) for i in ids(tier, "acme")} == put - told


def test_an_answer_larger_than_the_bound_allows_is_not_kept(make_tier):
    tier = make_tier(max_bytes=1 << 20)
    large = answer(1, size=50_000)
    assert tier.put([large, answer(2)]) == [("acme", large.answer_id)]
    assert ids(tier, "acme") == {answer(2).answer_id}


def test_namespaces_that_are_empty_disappear(make_tier):
    tier = make_tier()
    tier.put([answer(1, namespace="a"), answer(2, namespace="b")])
    tier.put([answer(2, namespace="b", size=900)])
    assert sorted(tier.namespaces()) == ["a", "b"]
    assert tier.remove("b", [answer(2).answer_id]) == 1
    assert tier.namespaces() == ["a"]
    assert tier._db.execute("select count(*) from namespaces").fetchone() == (1,)


@pytest.mark.parametrize("earlier_version", [False, True])
def test_a_file_that_was_larger_becomes_small(tmp_path, make_tier, earlier_version):
    if earlier_version:
        write_earlier_version(tmp_path / "a.sqlite", [answer(n) for n in range(3000)])
    else:
        unbounded = make_tier()
        for begin in range(0, 3000, 500):
            assert unbounded.put([answer(n) for n in range(begin, begin + 500)]) == []
        unbounded.close()
    before = disk_bytes(tmp_path)
    tier = make_tier(max_bytes=1 << 20)
    assert before > 3 << 19
    assert len(ids(tier, "acme")) > 300
    assert disk_bytes(tmp_path) <= 1 << 20
    for begin in range(5000, 5400, 50):
        tier.put([answer(n) for n in range(begin, begin + 50)])
    assert disk_bytes(tmp_path) <= 1 << 20


def write_earlier_version(path, answers):
    from reprise.retrieval.tiers.record import encode_record

    database = sqlite3.connect(path)
    database.executescript(
        """
        create table answers (namespace text not null, answer_id text not null, exact_key blob,
          created_s real not null, record blob not null, primary key (namespace, answer_id)
        ) without rowid;
        create table credits (namespace text not null, answer_id text not null,
          uses integer not null, accepted_tokens integer not null,
          primary key (namespace, answer_id)) without rowid;
        """
    )
    database.executemany(
        "insert into answers values (?, ?, ?, ?, ?)",
        [(a.namespace, a.answer_id, b"key", a.created_s, encode_record(a)) for a in answers],
    )
    database.commit()
    database.close()


def test_a_file_with_exact_keys_opens(tmp_path, make_tier):
    make_tier().put([answer(1)])
    with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite")) as database:
        database.executescript(
            "alter table answers add column exact_key blob;"
            "create index by_exact_key on answers (namespace, exact_key)"
            " where exact_key is not null;"
            "update answers set exact_key = x'01';"
        )
    tier = make_tier()
    tier.put([answer(2)])
    assert ids(tier, "acme") == {answer(1).answer_id, answer(2).answer_id}
    indexes = tier._db.execute("select name from sqlite_master where type = 'index'").fetchall()
    assert ("by_exact_key",) not in indexes


def test_a_bound_too_small_for_a_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_bytes must be at least 1048576, got 1000"):
        SqliteTier(tmp_path / "a.sqlite", max_bytes=1000)
