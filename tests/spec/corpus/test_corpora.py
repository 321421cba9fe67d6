"""The corpora of many namespaces."""

import itertools
import threading
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reprise.spec.api.config import DraftConfig
from reprise.spec.corpus import corpora as corpora_module
from reprise.spec.corpus.corpora import (
    ANSWER_BYTES,
    NAMESPACE_BYTES,
    SMALL_TOKENS,
    TOKEN_BYTES,
    Corpora,
)
from reprise.spec.provider import DraftProvider

TOKENS = np.arange(40, dtype=np.int32)


def test_an_idle_namespace_is_forgotten_and_its_row_used_again() -> None:
    corpora = Corpora(max_bytes=1 << 20)
    rows = set()
    for number in range(40):
        name = str(number)
        rows.add(corpora.enter(name))
        corpora.add("a", TOKENS, name)
        corpora.leave(name)
        assert len(corpora) == 1
        corpora.remove("a", name)
        assert len(corpora) == 0
    assert len(rows) == 1
    assert not any(corpora.total)


def test_a_namespace_with_a_request_or_an_answer_stays() -> None:
    corpora = Corpora(max_bytes=1 << 20)
    row = corpora.enter("x")
    corpora.add("a", TOKENS, "x")
    corpora.remove("a", "x")
    assert corpora.enter("x") == row
    corpora.leave("x")
    corpora.remove("unknown", "x")
    corpora.remove("unknown", "y")
    assert len(corpora) == 1
    corpora.leave("x")
    assert len(corpora) == 0


def test_more_namespaces_than_rows_draft_from_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora_module, "FIRST_ROWS", 4)
    provider = DraftProvider(DraftConfig(verify_cost=0.0))
    for number in range(12):
        namespace = str(number)
        provider.add_answer("a", TOKENS + 100 * number, namespace=namespace)
        provider.start(f"live {number}", [7], namespace=namespace)
        provider.observe(f"live {number}", [100 * number, 100 * number + 1])
    for number in reversed(range(12)):
        provider.start("r", [7], namespace=str(number))
        provider.observe("r", [100 * number, 100 * number + 1])
        for request_id in ("r", f"live {number}"):
            assert provider.propose(request_id, limit=3)[:1] == [100 * number + 2]
            provider.finish(request_id)
        provider.remove_answer("a", namespace=str(number))
    assert provider.stats().answers == 0
    assert provider.stats().bytes == 0


def charge_of(*lengths: int) -> int:
    """What a namespace with such answers is charged."""
    return NAMESPACE_BYTES + sum(ANSWER_BYTES + TOKEN_BYTES * (length + 2) for length in lengths)


def test_the_bound_drops_the_oldest_answers_of_the_largest_namespace() -> None:
    corpora = Corpora(max_bytes=2 * charge_of(*[40] * 30))
    for name, count in (("small", 3), ("large", 45)):
        for number in range(count):
            corpora.add(str(number), TOKENS, name)
    corpora.enter("small")
    corpora.enter("large")
    small, large = (corpora._namespaces[name].corpus for name in ("small", "large"))
    for number in range(45, 200):
        corpora.add(str(number), TOKENS, "large")
        assert corpora.total.charge <= 2 * charge_of(*[40] * 30)
    assert len(small) == 3
    assert 50 < len(large) < 60
    assert [number for number in range(200) if str(number) in large] == list(
        range(200 - len(large), 200)
    )


def test_of_namespaces_alike_the_one_not_used_for_longest_gives_way() -> None:
    corpora = Corpora(max_bytes=10 * charge_of(40))
    for number in range(10):
        corpora.add("a", TOKENS, str(number))
    corpora.enter("0")
    corpora.leave("0")
    for number in range(10, 19):
        corpora.add("a", TOKENS, str(number))
    kept = {name for name in map(str, range(19)) if name in corpora._namespaces}
    assert kept == {"0", *map(str, range(10, 19))}


def test_what_does_not_fit_at_all_is_left_out() -> None:
    corpora = Corpora(max_bytes=charge_of(40))
    corpora.add("a", TOKENS, "x")
    corpora.add("b", np.arange(41, dtype=np.int32), "x")
    corpora.add("c", TOKENS[:0], "x")
    assert corpora.total.answers == 1
    Corpora(max_bytes=0).add("a", TOKENS, "x")


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:1]])
def test_a_small_namespace_costs_little(tokens: np.ndarray) -> None:
    corpora = Corpora(max_bytes=1 << 30)
    names = [f"tenant {number}" for number in range(4000)]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for name in names:
            corpora.add("a", tokens, name)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (after - before) / len(names) - 4 * len(tokens) < 500
    assert corpora.total.answers == len(names)


class CorporaMachine(RuleBasedStateMachine):
    """Answers of three namespaces under a bound, with requests that come and go, against dicts."""

    NAMES = ("", "x", "y")

    def __init__(self) -> None:
        super().__init__()
        self.bound = charge_of(*[40] * 60)
        self.corpora = Corpora(max_bytes=self.bound)
        self.live: list[str] = []
        self.answers: dict[str, dict[str, list[int]]] = {name: {} for name in self.NAMES}

    @rule(
        name=st.sampled_from(NAMES),
        number=st.integers(0, 30),
        length=st.sampled_from([1, 40, 700, SMALL_TOKENS]),
    )
    def add(self, name: str, number: int, length: int) -> None:
        tokens = (np.arange(length) % (number + 2)).astype(np.int32)
        self.corpora.add(str(number), tokens, name)
        if charge_of(length) <= self.bound:
            self.answers[name].setdefault(str(number), tokens.tolist())
        # The bound took the oldest, of whichever namespace.
        for namespace in self.NAMES:
            kept = self.corpora._namespaces.get(namespace)
            mine = self.answers[namespace]
            while mine and (kept is None or next(iter(mine)) not in kept):
                del mine[next(iter(mine))]

    @rule(name=st.sampled_from(NAMES), number=st.integers(0, 30))
    def remove(self, name: str, number: int) -> None:
        self.corpora.remove(str(number), name)
        self.answers[name].pop(str(number), None)

    @rule(name=st.sampled_from(NAMES))
    def enter(self, name: str) -> None:
        self.corpora.enter(name)
        self.live.append(name)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(self.live))
        self.live.remove(name)
        self.corpora.leave(name)

    @invariant()
    def is_right(self) -> None:
        total = self.corpora.total
        assert total.answers == sum(map(len, self.answers.values()))
        lengths = [len(tokens) for mine in self.answers.values() for tokens in mine.values()]
        assert total.tokens == sum(lengths)
        assert total.charge <= self.bound
        for name in self.NAMES:
            found = self.corpora._namespaces.get(name)
            mine = self.answers[name]
            assert (found is not None) == (bool(mine) or name in self.live)
            if found is None:
                continue
            assert found.corpus is not None or name not in self.live
            if found.corpus is not None:
                assert len(found.corpus) == len(mine)
                assert found.corpus.num_tokens == sum(map(len, mine.values()))
                first = sum(tokens[0] == 0 for tokens in mine.values())
                counts = found.corpus.successor_counts(np.array([-2], np.int32))
                assert counts == ({0: first} if first else {})


CorporaMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_random_changes = CorporaMachine.TestCase


def test_answers_come_and_go_while_requests_do() -> None:
    """Two threads: what one removed is never drafted from by the other once it is known."""
    provider = DraftProvider(DraftConfig(verify_cost=0.0, num_threads=1, max_corpus_bytes=400_000))
    names = [str(number) for number in range(6)]
    errors: list[BaseException] = []
    stop = threading.Event()
    removed = dict.fromkeys(names, 0)  # all answers of numbers below this have been taken out

    def learn() -> None:
        try:
            for number in itertools.count():
                name = names[number % len(names)]
                provider.add_answer(str(number), TOKENS + 100 * (number % 100_000), namespace=name)
                if number >= 240:
                    provider.remove_answer(str(number - 240), namespace=name)
                    removed[name] = number - 239
                if stop.is_set():
                    return
        except BaseException as error:
            errors.append(error)

    learner = threading.Thread(target=learn)
    learner.start()
    drafted = checked = 0
    try:
        while checked < 300 and learner.is_alive():
            for index, name in enumerate(names):
                provider.start("r", [7], namespace=name)
                gone = removed[name] - len(names) + (index - removed[name]) % len(names)
                if gone >= 0:  # the last of this namespace that is out for certain
                    first = 100 * (gone % 100_000)
                    provider.observe("r", [first, first + 1])
                    assert first + 2 not in provider.propose("r", limit=1)
                    checked += 1
                newest = 100 * ((gone + 20 * len(names)) % 100_000)
                provider.observe("r", [newest, newest + 1])
                drafted += newest + 2 in provider.propose("r", limit=2)
                provider.finish("r")
    finally:
        stop.set()
        learner.join()
    assert not errors
    assert provider.stats().errors == 0
    assert checked >= 300
    assert drafted > 100
