"""The breaker's states, by a clock of its own."""

import pytest

from reprise.retrieval.tiers.sync.circuit_breaker import CircuitBreaker
from reprise.retrieval.tiers.tier import TierError


class Tier:
    def __init__(self):
        self.works, self.calls, self.now_s = True, 0, 0.0
        self.breaker = CircuitBreaker("the tier", clock=lambda: self.now_s)

    def _call(self):
        self.calls += 1
        if not self.works:
            raise TierError("down")
        return "ok"

    def call(self):
        return self.breaker.call(self._call)

    def fail(self, times):
        for _ in range(times):
            with pytest.raises(TierError):
                self.call()


def test_it_opens_after_failures_in_a_row_only():
    tier = Tier()
    for _ in range(5):
        tier.works = False
        tier.fail(2)
        tier.works = True
        assert tier.call() == "ok"
    assert tier.breaker.state == "closed"
    tier.works = False
    tier.fail(3)
    assert tier.breaker.state == "open"


def test_an_open_breaker_asks_nobody():
    tier = Tier()
    tier.works = False
    tier.fail(103)
    assert tier.calls == 3


def test_one_probe_decides():
    tier = Tier()
    tier.works = False
    tier.fail(3)
    tier.now_s = 0.5
    tier.fail(10)
    assert (tier.calls, tier.breaker.state) == (4, "open")
    tier.now_s = 1.4  # the pause has doubled
    tier.fail(1)
    assert tier.calls == 4
    tier.works, tier.now_s = True, 1.6
    assert tier.call() == "ok"
    assert tier.breaker.state == "closed"


def test_the_pause_grows_to_its_bound():
    tier = Tier()
    tier.works = False
    tier.fail(3)
    for _ in range(20):
        tier.now_s += 15.0
        tier.fail(1)
    assert tier.calls == 23


def test_one_log_line_per_change(caplog):
    tier = Tier()
    tier.works = False
    tier.fail(50)
    tier.now_s = 1.0
    tier.fail(50)
    tier.works, tier.now_s = True, 10.0
    for _ in range(50):
        tier.call()
    assert [record.message for record in caplog.records] == [
        "the tier fails, going on without it: down",
        "the tier works again.",
    ]


def test_a_probe_that_ends_in_any_error_is_not_the_last():
    tier = Tier()
    tier.works = False
    tier.fail(3)
    tier.now_s = 1.0

    def broken():
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        tier.breaker.call(broken)
    assert tier.breaker.state == "open"
    tier.works, tier.now_s = True, 3.0
    assert tier.call() == "ok"
