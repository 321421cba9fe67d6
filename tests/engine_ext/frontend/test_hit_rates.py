"""Shares of requests that were answered from the cache, or had near answers."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

from reprise.engine_ext.frontend.hit_rates import hit_rates

COUNTS = Counter(exact=4, followed=1, miss=5)


def test_before_the_first_request_all_is_zero() -> None:
    rates = hit_rates(Counter(), shared=None, near=None, url="memory://")
    assert rates == {"exact": 0.0, "followed": 0.0, "exact_by_tier": {"memory": 0.0}}


def test_hits_are_told_apart_by_the_tier_that_they_came_from() -> None:
    shared: Any = SimpleNamespace(stats=lambda: {"hit": 3})
    rates = hit_rates(COUNTS, shared=shared, near=None, url="redis://host:6379/0")
    assert (rates["exact"], rates["followed"]) == (0.5, 0.1)
    assert rates["exact_by_tier"] == {"memory": 0.1, "redis": 0.3}
    # One that was taken in and could not be replayed is no hit.
    shared = SimpleNamespace(stats=lambda: {"hit": 9})
    rates = hit_rates(COUNTS, shared=shared, near=None, url="redis://host:6379/0")
    assert rates["exact_by_tier"] == {"memory": 0.0, "redis": 0.4}


def test_near_answers_are_a_share_of_searches_that_ended() -> None:
    stats = {"found": 3, "submitted": 8, "abandoned": 2}
    near: Any = SimpleNamespace(stats=lambda: stats, kinds=Counter(semantic=2, clause=1, miss=1))
    rates = hit_rates(COUNTS, shared=None, near=near, url="memory://")
    assert (rates["near"], rates["semantic"], rates["clause"]) == (0.5, 0.5, 0.25)
