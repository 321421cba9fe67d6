"""Machines that share a Redis and whose clocks differ: nothing expires too early or too late, and
what is to be forgotten is."""

import subprocess
import sys
from contextlib import contextmanager

import msgspec
import pytest
import redis

from reprise.retrieval import Answer, RetrievalConfig
from reprise.retrieval.api.invalidation import CLOCK_SKEW_S, Invalidation
from reprise.retrieval.host import steady_clock
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.tiers.redis import redis_clock
from reprise.retrieval.tiers.redis.redis_tier import RedisTier

pytestmark = pytest.mark.redis
HOUR_S = 3600.0
SKEWS_S = [-5 * 3600.0, -300.0, 300.0, 5 * 3600.0]


def answer(number, *, age_s=0.0, **fields):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 5,
        prompt_text=f"question number {number}",
        namespace="acme",
        answer_id=f"id{number}",
        created_s=steady_clock.now_s() - age_s,
        **fields,
    )


class Machine:
    """A machine with a tier, whose clock is so many seconds ahead of Redis's."""

    def __init__(self, tier, ahead_s):
        self.tier, self._ahead_s = tier, ahead_s

    @contextmanager
    def clock(self):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(steady_clock, "_OFFSET_S", steady_clock._OFFSET_S + self._ahead_s)
            yield

    def put(self, number, *, age_s=0.0, **fields):
        with self.clock():
            made = answer(number, age_s=age_s)
            self.tier.put([msgspec.structs.replace(made, **fields)])

    def ages(self):
        with self.clock():
            now_s = steady_clock.now_s()
            held = [*self.tier.answers("acme"), *self.tier.exact_answers("acme")]
            return {each.answer_id: now_s - each.created_s for each in held}

    def forget(self, **conditions):
        with self.clock():
            made = Invalidation.create(**conditions)
            return {answer_id for _, answer_id in self.tier.forget(made)}


@pytest.fixture
def make_machine(redis_server):
    made = []

    def make(ahead_s, **options):
        made.append(RedisTier(redis_server.url, timeout_s=20.0, **options))
        return Machine(made[-1], ahead_s)

    yield make
    for tier in made:
        tier.close()


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_ages_are_the_same_on_all_machines(make_machine, skew_s):
    one, other = make_machine(0.0, ttl_s=HOUR_S), make_machine(skew_s, ttl_s=HOUR_S)
    one.put(1, age_s=60.0)
    other.put(2, age_s=60.0)
    for machine in (one, other):
        assert machine.ages() == {
            "id1": pytest.approx(60.0, abs=CLOCK_SKEW_S),
            "id2": pytest.approx(60.0, abs=CLOCK_SKEW_S),
        }


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_answers_for_exact_hits_expire_when_they_should(make_machine, skew_s):
    writer, reader = make_machine(skew_s), make_machine(0.0)
    key = b"k" * 16
    with writer.clock():
        expires_s = steady_clock.now_s() + 60.0
    writer.put(1, exact_key=key, fingerprint="f", expires_s=expires_s)
    with reader.clock():
        [found] = reader.tier.find_exact("acme", [key])
        assert found.expires_s - steady_clock.now_s() == pytest.approx(60.0, abs=CLOCK_SKEW_S)
        assert steady_clock.now_s() - found.created_s == pytest.approx(0.0, abs=CLOCK_SKEW_S)


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_a_machine_with_another_clock_lets_others_answers_live(redis_server, make_machine, skew_s):
    """It reads each record once, and shortens the life of what lives too long."""
    one, other = make_machine(0.0, ttl_s=HOUR_S), make_machine(skew_s, ttl_s=HOUR_S)
    one.put(1)
    with other.clock():
        for _ in range(3):
            other.tier.expire()
    with redis.Redis(port=redis_server.port) as client:
        [record] = client.keys("*:a:id1")
        assert HOUR_S - 60.0 < client.pttl(record) / 1000 <= HOUR_S


@pytest.mark.parametrize("ttl_first", [True, False])
def test_an_answer_of_the_future_lives_no_longer_than_others(redis_server, make_machine, ttl_first):
    """Imported, say, with the date of a machine that was wrong."""
    machine = make_machine(0.0, ttl_s=HOUR_S)
    (machine if ttl_first else make_machine(0.0)).put(1, age_s=-30 * 86_400.0)
    machine.tier.expire()
    with redis.Redis(port=redis_server.port) as client:
        [record] = client.keys("*:a:id1")
        assert 0 < client.pttl(record) / 1000 <= HOUR_S


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_older_than_means_the_same_answers_on_all_machines(make_machine, skew_s):
    one, other = make_machine(0.0), make_machine(skew_s)
    for number, age_s in enumerate([200.0, 100.0, 10.0]):
        one.put(number, age_s=age_s)
        other.put(10 + number, age_s=age_s)
    assert other.forget(namespace="acme", older_than_s=150.0) == {"id0", "id10"}
    assert one.forget(namespace="acme", older_than_s=50.0) == {"id1", "id11"}
    assert other.ages().keys() == {"id2", "id12"}


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_an_invalidation_is_as_old_on_all_machines(make_machine, skew_s):
    one, other = make_machine(0.0), make_machine(skew_s)
    other.forget(namespace="acme", older_than_s=30.0)
    with one.clock():
        [found] = one.tier.invalidations(None).invalidations
        now_s = steady_clock.now_s()
        assert now_s - found.made_s == pytest.approx(0.0, abs=CLOCK_SKEW_S)
        assert now_s - found.created_before_s == pytest.approx(30.0, abs=CLOCK_SKEW_S)
        assert not found.is_late
        one.tier.announce(found)  # once more, where the log may be lost
    with other.clock():
        assert len(other.tier.invalidations(None).invalidations) == 1


def test_clocks_that_differ_little_change_nothing(make_machine):
    machine = make_machine(0.3)
    with machine.clock():
        made = answer(1)
        machine.tier.put([made])
        assert [each.created_s for each in machine.tier.answers("acme")] == [made.created_s]


def test_a_clock_that_is_set_is_followed(make_machine, monkeypatch):
    """Of a machine that takes over as the master, say."""
    machine = make_machine(0.0)
    machine.put(1, age_s=10.0)
    monkeypatch.setattr(
        redis_clock.time, "monotonic", lambda now=redis_clock.time.monotonic: now() + 60.0
    )
    machine._ahead_s = 300.0  # as seen from Redis
    assert machine.ages() == {"id1": pytest.approx(10.0, abs=CLOCK_SKEW_S)}


FORGET = """
import sys
from reprise.retrieval.host import steady_clock
steady_clock._OFFSET_S += float(sys.argv[2])
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
tier = RedisTier(sys.argv[1], timeout_s=20.0)
tier.announce(Invalidation.create(namespace="acme"))
tier.close()
"""


@pytest.mark.parametrize("skew_s", SKEWS_S)
def test_what_another_machine_has_forgotten_leaves_memory_and_nothing_else_does(
    redis_server, wait_until, skew_s
):
    config = RetrievalConfig(
        url=redis_server.url, embedding_model="lexical", clauses=False, poll_s=0.05
    )
    retriever = LocalRetriever(config, embedder=Embedder("lexical"))
    try:
        assert retriever.wait_until_warm(60)
        retriever.store(answer(1))
        command = [sys.executable, "-c", FORGET, redis_server.url, str(skew_s)]
        subprocess.run(command, check=True, timeout=120)
        wait_until(lambda: retriever.answer("acme", "id1") is None, timeout_s=20.0)
        # What is made once that is past is kept, and written.
        made = answer(2, age_s=-CLOCK_SKEW_S - 1.0)
        retriever.store(made)
        assert retriever.flush(60)
        assert retriever.answer("acme", "id2") is not None
        tier = RedisTier(redis_server.url, timeout_s=20.0)
        assert "id2" in {each.answer_id for each in tier.answers("acme")}
        tier.close()
    finally:
        retriever.close()
