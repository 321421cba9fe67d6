"""Answers for exact hits in SQLite and Redis: found by their key, bounded and forgotten."""

import os
import sqlite3
import time

import msgspec
import pytest
import redis

from reprise.retrieval import Answer
from reprise.retrieval.api.answer import exact_id
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.sqlite_tier import SqliteTier
from reprise.retrieval.tiers.tier import UsageCounts

KEY, OTHER_KEY = b"k" * 16, b"o" * 16
LABEL = b"zzyzx-label"


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.redis)])
def make_tier(request, tmp_path, redis_bytes, advance_clock):
    opened = []
    server = request.getfixturevalue("redis_server") if request.param == "redis" else None

    def make(**options):
        if server is None:
            opened.append(SqliteTier(tmp_path / "answers.sqlite", **options))
        else:
            opened.append(RedisTier(server.url, timeout_s=20.0, **options))
        return opened[-1]

    def raw(damage=None):
        """All bytes that are stored; `damage`: a key whose record is overwritten."""
        if server is None:
            with sqlite3.connect(tmp_path / "answers.sqlite") as db:
                if damage is not None:
                    db.execute(
                        "update answers set record = zeroblob(length(record)) where answer_id = ?",
                        (exact_id(damage),),
                    )
            return b"".join(path.read_bytes() for path in tmp_path.iterdir())
        if damage is not None:
            client = redis.Redis.from_url(server.url)
            (name,) = client.keys(f"*{exact_id(damage)}")
            client.set(name, b"RA\x01\x00rubbish of no use")
        return redis_bytes(server.url)

    def pass_time(seconds):
        """Redis has a clock of its own."""
        if server is not None:
            time.sleep(seconds)
        else:
            advance_clock(seconds)

    make.raw, make.pass_time = raw, pass_time
    yield make
    for tier in opened:
        tier.close()


def exact(key=KEY, *, namespace="acme", number=1, **fields):
    answer = Answer.create(
        prompt_token_ids=[number, 2, 3],
        response_token_ids=[4, number],
        namespace=namespace,
        model_key="m",
        prompt_text=f"what is {number}? {LABEL.decode()}",
        exact_key=key,
    )
    return msgspec.structs.replace(answer, **{"fingerprint": "f", **fields})


def drafted(number=1, namespace="acme"):
    whole = exact(number=number, namespace=namespace)
    return msgspec.structs.replace(whole, exact_key=None, fingerprint="")


def test_a_key_finds_its_answer_as_it_was_in_its_namespace_alone(make_tier):
    tier = make_tier()
    tier.put([exact(), exact(OTHER_KEY, number=2), exact(namespace="other", number=3)])
    assert tier.find_exact("acme", [KEY]) == [
        exact(created_s=tier.find_exact("acme", [KEY])[0].created_s)
    ]
    assert {a.exact_key for a in tier.find_exact("acme", [KEY, b"none", OTHER_KEY])} == {
        KEY,
        OTHER_KEY,
    }
    assert [a.prompt_tokens for a in tier.find_exact("other", [KEY, OTHER_KEY])] == [
        exact(number=3).prompt_tokens
    ]
    assert tier.find_exact("third", [KEY]) == []


def test_those_for_drafts_and_those_for_exact_hits_keep_out_of_each_others_way(make_tier):
    tier, follower = make_tier(), make_tier()
    follower.changes(anew=True)
    tier.put([exact(), drafted()])
    assert exact().answer_id == drafted().answer_id
    assert [a.fingerprint for a in tier.answers("acme")] == [""]
    assert [a.fingerprint for a in tier.exact_answers("acme")] == ["f"]
    # Nobody drafts from what is announced but what is for drafts.
    assert [a.fingerprint for a in follower.changes().added] == [""]
    tier.remove("acme", [drafted().answer_id])
    assert len(tier.find_exact("acme", [KEY])) == 1
    tier.remove("acme", [exact().stored_id])
    assert tier.find_exact("acme", [KEY]) == []
    assert tier.namespaces() == []
    assert follower.changes().removed == (("acme", drafted().answer_id),)


def test_the_later_answer_replaces_the_earlier(make_tier):
    tier = make_tier()
    tier.put([exact(number=1)])
    tier.put([exact(number=2, expires_s=steady_clock.now_s() + 0.2)])
    tier.put([exact(number=3)])
    make_tier.pass_time(0.3)
    tier.expire()
    assert [a.prompt_tokens for a in tier.exact_answers("acme")] == [exact(number=3).prompt_tokens]


@pytest.mark.parametrize("tier_ttl_s", [None, 60.0])
def test_one_that_expires_leaves_no_bytes(make_tier, tier_ttl_s):
    tier = make_tier(ttl_s=tier_ttl_s)
    tier.put([exact(expires_s=steady_clock.now_s() + 0.5), exact(OTHER_KEY, number=2)])
    make_tier.pass_time(0.6)
    tier.expire()
    assert tier.find_exact("acme", [KEY]) == []
    assert len(tier.find_exact("acme", [OTHER_KEY])) == 1
    tier.put([exact(b"n" * 16, number=4)])  # in Redis, whoever writes tidies up
    assert exact_id(KEY).encode() not in make_tier.raw()


def test_the_time_to_live_of_the_tier_holds(make_tier):
    tier = make_tier(ttl_s=0.5)
    tier.put([exact()])
    make_tier.pass_time(0.6)
    tier.expire()
    assert tier.find_exact("acme", [KEY]) == []


def conditions():
    return {
        "namespace": {"namespace": "acme"},
        "tenant": {"tenant": "acme"},
        "id": {"answer_id": exact().answer_id},
        "prompt": {"prompt": f"what is 1? {LABEL.decode()}"},
        "age": {"older_than_s": 0.0},
        "model": {"model_key": "m"},
        "everything": {"everything": True},
    }


@pytest.mark.parametrize("condition", conditions())
def test_every_condition_reaches_them_and_leaves_no_bytes(make_tier, condition, monkeypatch):
    monkeypatch.setattr("reprise.retrieval.tiers.record._COMPRESS_FROM_BYTES", 1 << 30)
    tier = make_tier()
    tier.put([exact(), drafted()])
    assert LABEL in make_tier.raw()
    gone = tier.forget(Invalidation.create(**conditions()[condition]))
    # One answer, stored twice.
    assert gone == [("acme", exact().answer_id)]
    assert tier.find_exact("acme", [KEY]) == []
    stored = make_tier.raw()
    assert LABEL not in stored
    assert exact_id(KEY).encode() not in stored


@pytest.mark.parametrize("condition", ["namespace", "prompt"])
def test_what_a_replica_removes_at_the_announcement_is_counted_all_the_same(
    make_tier, condition, monkeypatch
):
    """A replica removes what it has written of late as soon as it hears, which may be at once."""
    tier, replica = make_tier(), make_tier()
    tier.put([exact(), exact(key=b"other", namespace="other")])
    announce = tier.announce

    def announced(invalidation):
        announce(invalidation)
        replica.remove("acme", [exact().stored_id])

    monkeypatch.setattr(tier, "announce", announced)
    fields = {"namespace": "acme"} | conditions()[condition]
    gone = tier.forget(Invalidation.create(**fields))
    assert gone == [("acme", exact().answer_id)]
    assert [*replica.exact_answers("acme")] == []
    assert len([*replica.exact_answers("other")]) == 1


def test_forgetting_leaves_others(make_tier):
    tier = make_tier()
    tier.put([exact(), exact(OTHER_KEY, number=2), exact(namespace="other")])
    tier.forget(Invalidation.create(answer_id=exact().answer_id, namespace="acme"))
    assert tier.find_exact("acme", [KEY]) == []
    assert len(tier.find_exact("acme", [OTHER_KEY])) == 1
    assert len(tier.find_exact("other", [KEY])) == 1


def test_a_damaged_record_is_a_miss_counted_and_can_be_forgotten(make_tier):
    tier = make_tier()
    tier.put([exact(), exact(OTHER_KEY, number=2)])
    make_tier.raw(damage=KEY)
    assert [a.exact_key for a in tier.find_exact("acme", [KEY, OTHER_KEY])] == [OTHER_KEY]
    assert tier.num_damaged == 1
    tier.forget(Invalidation.create(namespace="acme"))
    assert tier.namespaces() == []
    assert exact_id(KEY).encode() not in make_tier.raw()


def test_what_is_asked_for_again_and_again_stays(make_tier):
    tier = make_tier(max_bytes=1 << 20)
    tier.put([exact()])
    tier.record_usage("acme", {exact().stored_id: UsageCounts(50, 5000)})
    for begin in range(2, 302, 20):
        tier.put(
            [
                exact(n.to_bytes(16, "little"), number=n, response_tokens=os.urandom(8000))
                for n in range(begin, begin + 20)
            ]
        )
    assert sum(1 for _ in tier.exact_answers("acme")) < 200
    assert len(tier.find_exact("acme", [KEY])) == 1
