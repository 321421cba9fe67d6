"""What answers were good for reaches the tier, so that a restart evicts by it."""

import time
from functools import partial

import pytest
import redis

from reprise.retrieval import RetrievalConfig
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.in_process.open_tier import open_tier
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.service.process_retriever import ProcessRetriever
from reprise.retrieval.tiers.sync.pending_usage import PendingUsage
from reprise.retrieval.tiers.tier import UsageCounts
from reprise.tests.retrieval import numbered_answers

pytestmark = pytest.mark.redis
answer = partial(numbered_answers.answer, namespace="acme", size=20)


@pytest.fixture(params=["sqlite", "redis"])
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/a.sqlite"
    return request.getfixturevalue("redis_server").url


@pytest.fixture
def start():
    started = []

    def begin(url, **options):
        config = RetrievalConfig(url=url, embedding_model="lexical", clauses=False, **options)
        started.append(LocalRetriever(config, embedder=Embedder("lexical")))
        assert started[-1].wait_until_warm(60)
        return started[-1]

    yield begin
    for retriever in started:
        retriever.close()


def kept(url, namespace="acme"):
    """Id to (uses, accepted tokens), as the tier has them."""
    tier = open_tier(url, timeout_s=20.0)
    found = {a.answer_id: (a.uses, a.accepted_tokens) for a in tier.answers(namespace)}
    tier.close()
    return found


def test_a_restarted_replica_evicts_by_what_was_useful_before(url, start):
    first = start(url)
    for number in range(200):
        first.store(answer(number))
    assert first.flush(200)
    bytes_each = first.stats().bytes // 200
    useful = {f"id{number}" for number in range(0, 200, 10)}
    first.record_usage("acme", dict.fromkeys(useful, 40))
    assert first.flush(200)
    first.close()

    second = start(url, memory_bytes=100 * bytes_each)
    held = {a.answer_id for a in second.answers()}
    assert len(held) <= 100
    # By chance, without what the tier remembers: once in 2 ** 20.
    assert useful <= held


def test_all_kinds_of_use_are_added_up(url, start):
    retriever = start(url)
    for number in range(3):
        retriever.store(answer(number))
    assert retriever.flush(200)
    for _ in range(3):
        retriever.record_usage("acme", {"id0": 7, "id1": 0, "unknown": 5})
    retriever.record_usage("zeta", {"id0": 100})  # nobody's
    assert retriever.flush(200)
    assert kept(url) == {"id0": (3, 21), "id1": (3, 0), "id2": (0, 0)}
    assert kept(url, "zeta") == {}
    assert retriever.stats().uncredited == 0


def test_two_replicas_add_to_the_same_answer(url, start):
    first, second = start(url), start(url)
    first.store(answer(1))
    assert first.flush(200)
    for retriever in (first, second):
        retriever.record_usage("acme", {"id1": 5})
        assert retriever.flush(200)
    assert kept(url)["id1"] == (2, 10)


def test_what_a_client_credits_counts(url, wait_until):
    config = RetrievalConfig(url=url, embedding_model="lexical", clauses=False)
    retriever = ProcessRetriever(config)
    try:
        wait_until(lambda: retriever.health().state == "ready")
        retriever.store(answer(1))
        assert retriever.flush(200)
        retriever.record_usage("acme", {"id1": 5})
        assert retriever.flush(200)
        assert kept(url)["id1"] == (1, 5)
    finally:
        retriever.close()


def test_uses_are_written_without_being_asked_for(redis_server, start, wait_until):
    retriever = start(redis_server.url)
    retriever.store(answer(1))
    assert retriever.flush(200)
    retriever.record_usage("acme", {"id1": 5})
    wait_until(lambda: kept(redis_server.url)["id1"] == (1, 5))


def test_many_uses_are_few_commands(redis_server, start):
    retriever = start(redis_server.url)
    for number in range(4):
        retriever.store(answer(number))
    assert retriever.flush(200)
    client = redis.Redis.from_url(redis_server.url)
    client.config_resetstat()
    began_s = time.monotonic()
    for _ in range(1000):
        retriever.record_usage("acme", {f"id{n}": 2 for n in range(4)})
    assert retriever.flush(200)
    took_s = time.monotonic() - began_s
    calls = client.info("commandstats")["cmdstat_hincrby"]["calls"]
    # Two for each answer and second of crediting; 8,000 if every credit were written.
    assert calls <= 8 * (took_s + 2)
    assert kept(redis_server.url)["id3"] == (1000, 2000)
    client.close()


def test_uses_outlast_an_outage_and_what_is_lost_is_counted(redis_server, start, wait_until):
    retriever = start(redis_server.url)
    retriever.store(answer(1))
    assert retriever.flush(200)
    redis_server.freeze()
    try:
        retriever.record_usage("acme", {"id1": 5})
        assert not retriever.flush(0.5)
    finally:
        redis_server.thaw()
    # A write that was given up on may have arrived all the same: then it counts twice.
    wait_until(lambda: kept(redis_server.url)["id1"][0] >= 1)
    redis_server.kill()
    retriever.record_usage("acme", {"id1": 5, "id2": 5})
    retriever.close()
    assert retriever.stats().uncredited == 2


def test_pending_uses_are_bounded():
    pending = PendingUsage(3, every_s=1.0)
    pending.add("", {f"id{n}": UsageCounts(1, 1) for n in range(5)})
    pending.add("", {"id0": UsageCounts(2, 0)})
    assert (len(pending), pending.lost) == (3, 2)
    assert pending.take() == {
        "": {"id0": UsageCounts(3, 1), "id1": UsageCounts(1, 1), "id2": UsageCounts(1, 1)}
    }
    assert (len(pending), pending.take()) == (0, {})
