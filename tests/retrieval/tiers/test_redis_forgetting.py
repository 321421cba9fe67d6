"""What is to leave Redis leaves it: past its time, where there is no memory left, and where a dump
brought it back."""

import contextlib
import time

import msgspec
import numpy as np
import pytest
import redis

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.redis.redis_removal import RedisRemoval
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.tier import TierError, UsageCounts

pytestmark = pytest.mark.redis
_BOOKKEEPING = ("ids", "uses", "accepted", "value")


def answer(number, *, namespace="acme", age_s=0.0, size=20):
    draws = np.random.default_rng(number)
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=draws.integers(0, 60_000, size),
        prompt_text=f"question number {number}",
        namespace=namespace,
        answer_id=f"id{number}",
        created_s=steady_clock.now_s() - age_s,
    )


def exact(number, **fields):
    plain = answer(number, **fields)
    return msgspec.structs.replace(plain, exact_key=b"%016d" % number, fingerprint="f")


@pytest.fixture
def make_tier(redis_server):
    made = []

    def make(url=redis_server.url, **options):
        made.append(RedisTier(url, timeout_s=20.0, **options))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


def records(client):
    return client.keys("*:a:*")


def total(client):
    return int(client.get("reprise:2:{all}:total") or 0)


def ids(tier, namespace="acme"):
    return {each.answer_id for each in tier.answers(namespace)}


def test_a_time_to_live_reaches_what_was_written_without(client, make_tier, wait_until):
    make_tier().put([answer(1), answer(2), exact(2)])
    tier = make_tier(ttl_s=0.5)
    tier.put([answer(3)])
    time.sleep(1.0)
    assert len(records(client)) == 3
    assert set(tier.answer_ids("acme")) == {"id1", "id2", exact(2).stored_id}
    assert ids(tier) == set()
    assert tier.find_exact("acme", [exact(2).exact_key]) == []
    tier.expire()
    wait_until(lambda: not records(client))
    tier.expire()
    assert total(client) == 0
    assert tier.namespaces() == client.keys("*:ids") == client.keys("*:value") == []


def test_what_was_written_without_a_time_to_live_is_forgotten_with_the_rest(client, make_tier):
    make_tier().put([answer(1), answer(2)])
    make_tier(ttl_s=0.5).put([answer(3)])
    time.sleep(1.0)
    tier = make_tier()
    tier.forget(Invalidation.create(everything=True))
    assert records(client) == []


def test_a_shorter_time_to_live_reaches_what_has_a_longer_one(client, make_tier, wait_until):
    make_tier(ttl_s=500.0).put([answer(n, age_s=40.0 * n) for n in range(8)])
    tier = make_tier(ttl_s=100.0)
    assert ids(tier) == {"id0", "id1", "id2"}
    tier.expire()
    wait_until(lambda: len(records(client)) == 3)
    assert all(client.ttl(key) <= 100 for key in records(client))
    # Those of others, who have none, stay as they are.
    make_tier().expire()
    assert all(0 < client.ttl(key) <= 100 for key in records(client))


@pytest.mark.parametrize("ttl_s", [None, 600.0])
def test_bookkeeping_that_an_earlier_version_gave_a_time_has_none(client, make_tier, ttl_s):
    earlier = make_tier()
    for namespace in ("busy", "quiet"):
        earlier.put([answer(1, namespace=namespace)])
        earlier.record_usage(namespace, {"id1": UsageCounts(1, 1)})
    keys = [key for name in _BOOKKEEPING for key in client.keys(f"*:{name}")]
    assert len(keys) == 8
    for key in keys:
        client.pexpire(key, 600_000)
    tier = make_tier(ttl_s=ttl_s)
    tier.put([answer(2, namespace="busy")])
    assert sorted(map(client.ttl, keys)) == [-1] * 4 + [600] * 4
    tier.expire()
    assert set(map(client.ttl, keys)) == {-1}


def test_all_that_has_expired_is_found_however_much_it_was_used(client, make_tier):
    tier = make_tier(ttl_s=600.0)
    tier.put([answer(n) for n in range(700)])
    tier.record_usage("acme", {f"id{n}": UsageCounts(9, 90) for n in range(0, 700, 2)})
    client.delete(*(key for key in records(client) if int(key.rpartition(b"id")[2]) % 2 == 0))
    for _ in range(10):
        tier.expire()
    assert client.hlen(client.keys("*:ids")[0]) == client.zcard(client.keys("*:value")[0]) == 350
    assert client.keys("*:uses") == client.keys("*:accepted") == []
    everything = tier.remove("acme", [f"id{n}" for n in range(700)])
    assert (everything, total(client)) == (350, 0)


def test_what_is_put_anew_while_it_is_found_to_have_expired_stays(client, make_tier, monkeypatch):
    tier, other = make_tier(), make_tier()
    tier.put([answer(1)])
    client.delete(*records(client))
    drop_expired = RedisRemoval.drop_expired

    def after_it_was_put(*arguments):
        other.put([answer(1)])
        return drop_expired(*arguments)

    monkeypatch.setattr(RedisRemoval, "drop_expired", after_it_was_put)
    assert ids(tier) == set()
    assert ids(other) == ids(tier) == {"id1"}
    assert other.remove("acme", ["id1"]) == 1
    assert total(client) == 0


def leave_no_memory(client, *, bytes_short=1):
    client.config_set("maxmemory", client.info("memory")["used_memory"] - bytes_short)
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("anything", b"x")


def put_in_the_end(tier, answers):
    """Put as a server does: again and again; what left for it."""
    for _ in range(100):
        with contextlib.suppress(TierError):
            return tier.put(answers)
    raise AssertionError("Redis was never freed")


def test_a_redis_without_memory_left_takes_answers_in_place_of_others(client, make_tier):
    tier, other = make_tier(max_bytes=1 << 30), make_tier()
    tier.put([answer(n, size=2000) for n in range(200)])
    tier.record_usage("acme", {f"id{n}": UsageCounts(1, 50) for n in range(10)})
    other.changes()
    leave_no_memory(client, bytes_short=100_000)
    # A tool trims nothing.
    with pytest.raises(TierError, match="maxmemory"):
        other.put([answer(1000, size=2000)])
    assert len(records(client)) == 200
    put_in_the_end(tier, [answer(1000, size=2000)])
    held = ids(tier)
    assert held >= {"id1000", *(f"id{n}" for n in range(10))}
    assert 100 < len(held) < 200
    removed = {answer_id for _, answer_id in other.changes().removed}
    assert removed == {f"id{n}" for n in range(200)} - held
    client.config_set("maxmemory", 0)
    assert tier.remove("acme", [*held]) == len(held)
    assert total(client) == 0


def test_a_redis_without_memory_left_forgets(client, make_tier):
    tier, other = make_tier(max_bytes=1 << 30), make_tier()
    tier.put([answer(n, size=2000) for n in range(100)])
    other.changes()
    leave_no_memory(client)
    assert len(tier.forget(Invalidation.create(namespace="acme"))) == 100
    assert records(client) == []
    assert total(client) == 0
    assert len(other.changes().removed) == 100
    assert [each.namespace for each in other.invalidations(None).invalidations] == ["acme"]
    assert tier.put([answer(1)]) == []


@pytest.fixture
def make_retriever():
    made = []

    def make(url):
        config = RetrievalConfig(url=url, embedding_model="lexical", clauses=False, poll_s=0.05)
        made.append(LocalRetriever(config, embedder=Embedder("lexical")))
        assert made[-1].wait_until_warm(60)
        return made[-1]

    yield make
    for retriever in made:
        retriever.close()


def forget(retriever, **conditions):
    assert retriever.forget(Invalidation.create(**conditions), timeout_s=60.0).done


@pytest.mark.parametrize("saved_before", ["announce", "remove"])
def test_a_restart_from_a_dump_brings_nothing_back(
    redis_server, client, make_tier, make_retriever, wait_until, monkeypatch, saved_before
):
    retriever, other = make_retriever(redis_server.url), make_retriever(redis_server.url)
    make_tier().put([answer(1), exact(1), answer(2, age_s=60.0), exact(2, age_s=60.0)])
    for each in (retriever, other):
        wait_until(lambda each=each: len(each.answers()) == 2)
    forget(retriever, answer_id="another")  # the log is not empty
    with monkeypatch.context() as patched:
        step = getattr(RedisTier, saved_before)

        def after_a_dump(*arguments):
            client.save()
            return step(*arguments)

        patched.setattr(RedisTier, saved_before, after_a_dump)
        forget(retriever, answer_id="id1")
    assert len(records(client)) == 2
    wait_until(lambda: len(other.answers()) == 1)
    redis_server.kill()
    redis_server.start()
    wait_until(lambda: retriever.health().state == other.health().state == "ready")
    wait_until(lambda: len(records(client)) == 2)
    tier = make_tier()
    assert ids(tier) == {"id2"}
    assert [each.answer_id for each in tier.exact_answers("acme")] == ["id2"]
    time.sleep(0.5)  # ten times as often as others are followed
    for each in (retriever, other):
        wait_until(lambda each=each: [a.answer_id for a in each.answers()] == ["id2"])
    # Who was not there is told.
    told = [each.answer_id for each in tier.invalidations(None).invalidations]
    assert sorted(told) == ["another", "id1"]


def test_a_restart_that_loses_nothing_spares_what_was_imported_since(
    redis_server, client, make_tier, make_retriever, wait_until
):
    retriever = make_retriever(redis_server.url)
    make_tier().put([answer(1)])
    wait_until(lambda: retriever.answers())
    forget(retriever, everything=True)
    tier = make_tier()
    tier.put([answer(2, age_s=600.0)])
    wait_until(lambda: [each.answer_id for each in retriever.answers()] == ["id2"])
    client.shutdown(save=True)
    redis_server.kill()
    redis_server.start()
    wait_until(lambda: retriever.health().state == "ready")
    time.sleep(0.5)
    assert ids(tier) == {"id2"}
    assert [each.answer_id for each in retriever.answers()] == ["id2"]


@pytest.mark.slow
def test_a_shard_of_a_cluster_that_is_restarted_brings_nothing_back(
    start_redis, make_tier, make_retriever, wait_until
):
    """Though the shard of the log has lost nothing."""
    servers = [start_redis("--cluster-enabled", "yes") for _ in range(2)]
    nodes = [redis.Redis(port=server.port) for server in servers]
    for number, node in enumerate(nodes):
        node.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        node.execute_command("CLUSTER", "ADDSLOTS", *range(8192 * number, 8192 * (number + 1)))
    for node in nodes:
        wait_until(lambda n=node: b"cluster_state:ok" in n.execute_command("CLUSTER", "INFO"))
        wait_until(lambda n=node: len(n.execute_command("CLUSTER", "SLOTS")) == 2)
    of_log = nodes[0].cluster("keyslot", "{all}") // 8192
    url = f"{servers[of_log].url}?cluster=1"
    tier, retriever = make_tier(url), make_retriever(url)
    tier.put([answer(n, namespace=f"tenant{n}") for n in range(16)])
    wait_until(lambda: len(retriever.answers()) == 16)
    shard, server = nodes[1 - of_log], servers[1 - of_log]
    held = [key.rpartition(b":id")[2].decode() for key in records(shard)]
    assert 1 < len(held) < 16
    # Of one whose namespace holds nothing else.
    shard.save()
    forget(retriever, answer_id=f"id{held[0]}")
    assert len(records(shard)) == len(held) - 1
    time.sleep(1.5)  # so often masters are asked
    server.kill()
    server.start()
    wait_until(lambda: len(records(shard)) == len(held) - 1)
    wait_until(lambda: len(retriever.answers()) == 15)
    for node in nodes:
        node.close()
