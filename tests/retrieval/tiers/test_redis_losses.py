"""Keys and entries that a Redis has lost: by eviction, by hand, or with a master that failed."""

import time

import msgspec
import pytest

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.redis.redis_tier import RedisTier

pytestmark = pytest.mark.redis
STREAM = "reprise:2:{all}:stream"
KEY = b"k" * 16


def answer(number, *, namespace="acme"):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 5,
        prompt_text=f"question number {number}",
        namespace=namespace,
        answer_id=f"id{number}",
    )


def exact(number):
    return msgspec.structs.replace(answer(number), exact_key=KEY, fingerprint="f")


@pytest.fixture
def make_tier(redis_server):
    made = []

    def make(**options):
        made.append(RedisTier(redis_server.url, timeout_s=20.0, **options))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


@pytest.mark.parametrize("ahead_s", [0.0, 300.0])
def test_a_stream_that_has_lost_its_end_is_noticed(client, make_tier, ahead_s):
    """A replica became the master without the last entries, by a clock that is behind."""
    follower, other = make_tier(), make_tier()
    other.put([answer(1)])
    follower.changes()
    lost = f"{int((time.time() + ahead_s) * 1000)}-0"
    client.xadd(STREAM, {"op": "-", "ns": "acme", "id": "of nobody"}, id=lost)
    assert follower.changes().removed == (("acme", "of nobody"),)
    client.delete(STREAM)
    assert not follower.changes().complete
    other.put([answer(2)])
    other.remove("acme", ["id1"])
    assert not follower.changes().complete
    follower.changes(anew=True)
    other.put([answer(3)])
    found = follower.changes()
    assert found.complete
    assert [each.answer_id for each in found.added] == ["id3"]


def test_a_stream_that_is_as_it_was_is_complete(make_tier):
    follower, other = make_tier(), make_tier()
    follower.changes()
    assert follower.changes().complete  # there is none yet
    other.put([answer(1)])
    for _ in range(3):
        assert follower.changes().complete


@pytest.mark.parametrize("lost", ["bytes", "worth", "total"])
@pytest.mark.parametrize("put_again", [True, False])
def test_a_namespace_is_forgotten_though_the_ledger_was_lost(client, make_tier, lost, put_again):
    tier = make_tier()
    tier.put([answer(number) for number in range(5)])
    client.delete(f"reprise:2:{{all}}:{lost}")
    if put_again:
        tier.put([answer(1)])
        assert tier.namespaces() == ["acme"]
    tier.forget(Invalidation.create(namespace="acme"))
    assert client.keys("*:a:*") == []
    assert tier.find("acme", ["id1", "id4"]) == []
    assert int(client.get("reprise:2:{all}:total") or 0) == 0


@pytest.mark.parametrize("lost", ["bytes", "worth", "total"])
def test_the_total_is_what_namespaces_hold_though_the_ledger_was_lost(client, make_tier, lost):
    tier = make_tier(max_bytes=1 << 20, max_namespaces=10)
    tier.put([answer(n, namespace=f"tenant{n % 3}") for n in range(30)])
    client.delete(f"reprise:2:{{all}}:{lost}")
    tier.put([answer(100 + n, namespace=f"tenant{n}") for n in range(3)])
    charged = client.zrange("reprise:2:{all}:bytes", 0, -1, withscores=True)
    assert len(charged) == 3
    assert int(client.get("reprise:2:{all}:total")) == sum(num_bytes for _, num_bytes in charged)
    taken = [
        sum(int(value.split()[0]) for value in client.hvals(key)) for key in client.keys("*:ids")
    ]
    assert sorted(taken) == sorted(num_bytes for _, num_bytes in charged)


def test_what_nobody_would_forget_is_not_handed_out(client, make_tier):
    """Its record is there still; that it is there is not known any more."""
    tier = make_tier()
    tier.put([answer(1), exact(2)])
    assert [each.answer_id for each in tier.find_exact("acme", [KEY])] == ["id2"]
    client.delete(*client.keys("*:ids"))
    assert len(client.keys("*:a:*")) == 2
    assert tier.find_exact("acme", [KEY]) == tier.find("acme", ["id1"]) == []
    tier.put([exact(2)])
    assert [each.answer_id for each in tier.find_exact("acme", [KEY])] == ["id2"]
    tier.forget(Invalidation.create(namespace="acme"))
    assert tier.find_exact("acme", [KEY]) == []
