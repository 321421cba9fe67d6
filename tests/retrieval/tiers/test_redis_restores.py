"""A Redis that may hold again what was removed is noticed, and looked through where that may be."""

import pytest
import redis

from reprise.retrieval import Answer
from reprise.retrieval.api.invalidation import Invalidation
from reprise.retrieval.tiers.redis.redis_tier import RedisTier
from reprise.retrieval.tiers.sync.tier_sync import TierSync

pytestmark = pytest.mark.redis


def answer(number, *, namespace="acme"):
    return Answer.create(
        prompt_token_ids=[number],
        response_token_ids=[number] * 20,
        prompt_text=f"question number {number}",
        namespace=namespace,
        answer_id=f"id{number}",
    )


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
    sync = TierSync(tier, on_added=lambda _: None, on_forgotten=lambda _: None, poll_s=0.05)
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
