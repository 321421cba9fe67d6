"""A Redis that may hold again what was removed is noticed, and looked through where that may be."""

import time
from functools import partial
from types import SimpleNamespace

import pytest
import redis

from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.redis import redis_restores
from reprise.retrieval.tiers.redis.redis_restores import RedisRestores
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.sync.memory_before import MemoryBefore
from reprise.retrieval.tiers.sync.tier_sync import TierSync
from reprise.retrieval.tiers.tier import TierError
from reprise.tests.retrieval import numbered_answers

pytestmark = pytest.mark.redis
answer = partial(numbered_answers.answer, namespace="acme", size=20)


@pytest.fixture
def make_tier():
    made = []

    def make(url, *, timeout_s=20.0):
        made.append(RedisTier(url, timeout_s=timeout_s))
        return made[-1]

    yield make
    for tier in made:
        tier.close()


def test_it_is_looked_through_where_something_was_forgotten_with_few_comparisons(
    redis_server, make_tier, wait_until, monkeypatch
):
    tier, other = make_tier(redis_server.url), make_tier(redis_server.url)
    held = [answer(n, namespace=namespace) for n in range(40) for namespace in ("acme", "beta")]
    tier.put(held)
    sync = TierSync(
        tier, MemoryBefore(on_added=lambda _: None, on_forgotten=lambda _: None), poll_s=0.05
    )
    for number in range(40):
        sync.forget(Invalidation.create(namespace="acme", prompt=f"never asked {number}"))
    assert sync.forget(Invalidation.create(namespace="acme", answer_id="id0")).done.wait(60)
    other.put(held[:1])  # as if a dump had brought it back
    looked_through, compared = [], []
    exact_answers, means = RedisTier.exact_answers, Invalidation.means

    def note_namespace(self, namespace):
        looked_through.append(namespace)
        return exact_answers(self, namespace)

    def note_comparison(self, *arguments):
        compared.append(self)
        return means(self, *arguments)

    monkeypatch.setattr(RedisTier, "exact_answers", note_namespace)
    monkeypatch.setattr(Invalidation, "means", note_comparison)
    with redis.Redis.from_url(redis_server.url) as client:
        client.decr("reprise:2:{all}:forgotten")
    wait_until(lambda: not other.find("acme", ["id0"]))
    sync.close()
    assert set(looked_through) == {"acme"}
    assert len(compared) < 40


@pytest.fixture
def start_cluster(start_redis, wait_until):
    """A function that returns a cluster of two masters, that of the log first."""
    nodes = []

    def start():
        servers = [start_redis("--cluster-enabled", "yes") for _ in range(2)]
        nodes.extend(redis.Redis(port=server.port) for server in servers)
        for number, node in enumerate(nodes):
            node.execute_command("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
            node.execute_command("CLUSTER", "ADDSLOTS", *range(8192 * number, 8192 * (number + 1)))
        for node in nodes:
            wait_until(lambda n=node: b"cluster_state:ok" in n.execute_command("CLUSTER", "INFO"))
            wait_until(lambda n=node: len(n.execute_command("CLUSTER", "SLOTS")) == 2)
        of_log = nodes[0].cluster("keyslot", "{all}") // 8192
        return servers[of_log], servers[1 - of_log]

    yield start
    for node in nodes:
        node.close()


def test_a_master_of_a_cluster_that_does_not_answer_is_not_waited_for_each_time(
    start_cluster, make_tier
):
    of_log, other = start_cluster()
    tier = make_tier(f"{of_log.url}?cluster=1", timeout_s=1.5)
    assert not tier.namespaces()
    other.freeze()
    took_s = []
    for _ in range(3):
        began_s = time.monotonic()
        assert not tier.has_gone_back()
        took_s.append(time.monotonic() - began_s)
    assert took_s[0] > 1.0
    assert min(took_s[1:]) < 1.0


def test_a_master_that_answers_only_later_is_not_another_one(start_cluster, make_tier, monkeypatch):
    monkeypatch.setattr(redis_restores, "_ASK_MASTERS_EVERY_S", 0.0)
    monkeypatch.setattr(redis_restores, "_PAUSE", 0.0)
    of_log, other = start_cluster()
    tier = make_tier(f"{of_log.url}?cluster=1", timeout_s=0.5)
    assert not tier.namespaces()
    other.freeze()
    assert not tier.has_gone_back()
    other.thaw()
    assert not any(tier.has_gone_back() for _ in range(3))
    other.kill()
    other.start()
    assert any(tier.has_gone_back() for _ in range(3))


def test_a_master_that_is_added_is_no_other_one_and_one_in_place_of_another_is():
    masters = {"a:1": "run1", "b:1": "run2"}
    connection = SimpleNamespace(is_cluster=True, run_ids=lambda _: dict(masters))
    restores = RedisRestores(connection)
    client = SimpleNamespace(get=lambda _: b"0")

    def is_restored():
        restores._next_s = 0.0
        return restores.is_restored(client)

    assert not is_restored()
    masters["c:1"] = "run3"
    assert not is_restored()
    del masters["b:1"]
    assert not is_restored()
    masters["d:1"] = None  # does not answer yet
    assert is_restored()
    masters["d:1"] = "run4"
    assert not is_restored()
    masters["d:1"] = "run5"
    assert is_restored()


@pytest.mark.parametrize("node", [0, 1])
def test_a_cluster_that_is_taken_for_a_redis_alone_says_so(start_cluster, make_tier, node):
    server = start_cluster()[node]
    tier = make_tier(server.url)
    with pytest.raises(
        TierError, match=r"a Redis Cluster, and its URL needs \?cluster=1$"
    ) as raised:
        tier.put([answer(1)])
    assert "\n" not in str(raised.value)


def test_a_redis_alone_that_is_taken_for_a_cluster_says_so(redis_server, make_tier):
    tier = make_tier(f"{redis_server.url}?cluster=1")
    with pytest.raises(TierError, match=r"no Redis Cluster, .* without cluster=1$"):
        tier.namespaces()
