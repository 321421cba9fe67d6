"""What Redis holds for us is bounded, and following others costs the same with any number of
namespaces."""

import time

import pytest

from reprise.retrieval import Answer
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.tier import UsageCounts

pytestmark = pytest.mark.redis


def answer(number, *, namespace="acme", size=20):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * size,
        namespace=namespace,
        answer_id=f"id{number}",
    )


@pytest.fixture
def make_tier(redis_server):
    made = []

    def make(**options):
        made.append(RedisTier(redis_server.url, timeout_s=20.0, **options))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


def total(client):
    return int(client.get("reprise:2:{all}:total") or 0)


def ids(tier, namespace):
    return {a.answer_id for a in tier.answers(namespace)}


def test_looking_for_changes_costs_the_same_with_any_number_of_namespaces(client, make_tier):
    writer, reader = make_tier(), make_tier()
    reader.changes()
    moved = []
    for number in (1, 1000):
        writer.put([answer(5000 + n, namespace=f"tenant{n}") for n in range(number)])
        while reader.changes().added:
            pass
        client.config_resetstat()
        assert reader.changes().added == ()
        figures = client.info("stats")
        moved.append(figures["total_net_input_bytes"] + figures["total_net_output_bytes"])
    assert client.info("commandstats")["cmdstat_xread"]["calls"] == 1
    assert moved[1] < moved[0] + 500


def test_entries_that_nobody_understands_are_skipped_and_counted(client, make_tier):
    tier = make_tier()
    tier.changes()
    stream = "reprise:2:{all}:stream"
    for fields in (
        {"op": "+"},
        {"what": "else"},
        {"op": "+", "ns": "acme", "id": "id1"},
        {"op": "=", "ns": "acme", "id": "id1", "key": "a:id1"},
        {"op": "-", "ns": b"\xff", "id": "id1"},
    ):
        client.xadd(stream, fields)
    make_tier().put([answer(1)])
    assert [a.answer_id for a in tier.changes().added] == ["id1"]
    assert tier.changes().added == tier.changes().removed == ()
    assert tier.num_damaged == 5


def test_records_of_earlier_versions_are_read_and_leave_nothing_behind(client, make_tier):
    """They lie under the exact keys that answers then had."""
    tier = make_tier()
    tier.put([answer(1), answer(2)])
    [hash_of_ids] = client.keys("*:ids")
    tag = hash_of_ids.removesuffix(b":ids")
    for number in (1, 2):
        client.rename(tag + b":a:id%d" % number, tag + b":x:0%d" % number)
        size = client.hget(hash_of_ids, f"id{number}").partition(b" ")[0]
        client.hset(hash_of_ids, f"id{number}", size + b" x:0%d" % number)
    assert ids(tier, "acme") == set(tier.answer_ids("acme")) == {"id1", "id2"}
    before = total(client)
    tier.put([answer(1)])
    assert total(client) == before
    assert ids(tier, "acme") == {"id1", "id2"}
    assert client.keys("*:x:*") == [tag + b":x:02"]
    assert tier.remove("acme", ["id1", "id2"]) == 2
    assert client.keys("*:x:*") == client.keys("*:a:*") == []


def test_what_was_of_use_stays_and_the_rest_makes_room(client, make_tier):
    tier = make_tier(max_bytes=60_000)
    tier.put([answer(n) for n in range(10)])
    tier.record_usage("acme", {f"id{n}": UsageCounts(1, 50) for n in range(10)})
    for begin in range(10, 400, 10):
        tier.put([answer(n) for n in range(begin, begin + 10)])
        assert total(client) <= 60_000
    held = ids(tier, "acme")
    assert held >= {f"id{n}" for n in range(10)}
    assert 20 < len(held) < 80
    # Nothing is left behind of what went: not a record, nor a use.
    assert client.hlen(client.keys("*:ids")[0]) == len(held) == len(client.keys("*:a:*"))
    assert client.zcard(client.keys("*:value")[0]) == len(held)


def test_the_namespace_that_holds_most_gives_way(make_tier):
    tier = make_tier(max_bytes=60_000)
    tier.put([answer(n, namespace="small") for n in range(5)])
    for begin in range(0, 400, 20):
        tier.put([answer(n, namespace="large") for n in range(begin, begin + 20)])
    assert len(ids(tier, "small")) == 5


def test_what_is_trimmed_leaves_other_replicas_too(make_tier):
    reader = make_tier()
    reader.changes()
    tier = make_tier(max_bytes=20_000)
    gone = [
        key
        for begin in range(0, 60, 10)
        for key in tier.put([answer(begin + n) for n in range(10)])
    ]
    assert gone
    assert set(reader.changes().removed) == set(gone)


def test_the_least_valuable_namespace_leaves_as_a_whole(client, make_tier):
    tier = make_tier(max_namespaces=10)
    for tenant in range(10):
        tier.put([answer(n, namespace=f"tenant{tenant}") for n in range(3)])
        if tenant != 4:
            tier.record_usage(f"tenant{tenant}", {"id0": UsageCounts(1, 40)})
    gone = tier.put([answer(1, namespace="new")])
    assert {namespace for namespace, _ in gone} == {"tenant4"}
    assert len(gone) == 3
    assert sorted(tier.namespaces()) == sorted(
        ["new", *(f"tenant{t}" for t in range(10) if t != 4)]
    )
    assert not client.keys("*{" + "tenant4" + "}*")


def test_namespaces_that_are_empty_disappear(client, make_tier):
    tier = make_tier()
    for tenant in range(5):
        tier.put([answer(n, namespace=f"tenant{tenant}") for n in range(4)])
    for tenant in range(5):
        assert tier.remove(f"tenant{tenant}", [f"id{n}" for n in range(4)]) == 4
    assert tier.namespaces() == []
    assert total(client) == 0
    assert [key for key in client.keys("*") if b"stream" not in key] == [b"reprise:2:{all}:total"]


def test_nothing_is_charged_twice_and_removed_once(client, make_tier):
    tier, other = make_tier(), make_tier()
    tier.put([answer(1)])
    once = total(client)
    tier.put([answer(1)])
    other.put([answer(1)])
    assert total(client) == once
    tier.put([answer(1, size=4000)])
    tier.put([answer(1)])
    assert total(client) == once
    assert tier.remove("acme", ["id1", "id2"]) == 1
    assert other.remove("acme", ["id1"]) == 0
    assert total(client) == 0


def test_what_expires_leaves_no_bookkeeping(client, make_tier):
    tier = make_tier(ttl_s=0.4)
    for number in range(20):
        tier.put([answer(number), answer(number, namespace=f"tenant{number}")])
        time.sleep(0.05)
    # A namespace that goes on being written to keeps what is not yet expired, and little more.
    assert max(map(client.hlen, client.keys("*:ids")), default=0) <= 12
    assert tier._ttl_ms == 400
    time.sleep(0.5)
    # What joins now stays: by the time that all is looked at, a busy machine may be late.
    tier = make_tier(ttl_s=600.0)
    for number in range(20, 45):
        tier.put([answer(number)])
    assert tier.namespaces() == ["acme"]
    assert total(client) <= 30 * 1000


def test_the_stream_is_trimmed(client, make_tier):
    tier = make_tier(stream_length=100)
    for number in range(30):
        tier.put([answer(number, namespace=f"tenant{n}") for n in range(40)])
    assert client.xlen("reprise:2:{all}:stream") < 400


def num_looked_at(client, tier):
    """Return how many namespaces one look for what has expired is for."""
    client.config_resetstat()
    tier.expire()
    return client.info("commandstats")["cmdstat_hscan"]["calls"]


def test_a_look_for_what_has_expired_is_short_with_any_number_of_namespaces(
    client, redis_server, make_proxy
):
    proxy = make_proxy(redis_server.port)
    tier = RedisTier(f"redis://127.0.0.1:{proxy.port}/0", timeout_s=20.0)
    tier.put([answer(1, namespace=f"tenant{n}") for n in range(100)])
    assert 0 < num_looked_at(client, tier) <= 10
    # It is longer where much has to be done, if that is done soon.
    client.delete(*client.keys("*:a:*"))
    proxy.delay_s = 0.05
    assert 0 < num_looked_at(client, tier) <= 10
    tier.close()
