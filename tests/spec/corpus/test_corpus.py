"""Corpus against counting by hand, under random insertion and removal."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reprise.spec.corpus import corpus as corpus_module
from reprise.spec.corpus.corpus import Corpus
from reprise.spec.runtime.layout import BOS, CORPUS_FIELDS, MAX_CORPUS_TOKEN


def new_corpus(lock: AbstractContextManager[Any] | None = None) -> Corpus:
    return Corpus(np.zeros(CORPUS_FIELDS, np.int64), lock=lock)


def counts_by_hand(answers: dict[str, list[int]], context: list[int]) -> dict[int, int]:
    counts: dict[int, int] = {}
    k = len(context)
    for tokens in answers.values():
        text = [BOS, *tokens]
        for i in range(len(text) - k):
            if text[i : i + k] == context:
                counts[text[i + k]] = counts.get(text[i + k], 0) + 1
    return counts


def check(corpus: Corpus, answers: dict[str, list[int]]) -> None:
    assert len(corpus) == len(answers)
    assert corpus.num_tokens == sum(map(len, answers.values()))
    contexts = [[BOS]]
    for tokens in list(answers.values())[:4]:
        text = [BOS, *tokens]
        contexts += [text[-1 - k : -1] for k in (1, 2, 5, 24) if len(text) > k + 1]
    for context in contexts:
        expected = counts_by_hand(answers, context)
        assert corpus.successor_counts(np.array(context, np.int32)) == expected


class CheckedLock:
    """Looks at the corpus whenever a step could: before a change takes the lock and after it gave
    it back, which is all that a thread that holds the lock while it reads can ever see."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self.looks = 0

    def __enter__(self) -> None:
        self._look()

    def __exit__(self, *error: object) -> None:
        self._look()
        self.looks += 1


ANSWERS = st.one_of(
    st.lists(st.integers(0, 2), min_size=1, max_size=40),
    st.lists(st.integers(0, 2), min_size=60, max_size=90),  # more than the recent ones may be
)


class CorpusMachine(RuleBasedStateMachine):
    """A corpus against a dict of its answers, looked at between all the parts of each change."""

    def __init__(self) -> None:
        super().__init__()
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(corpus_module, "MAX_RECENT", 64)  # so that merges happen
        self._patch.setattr(corpus_module, "MAX_REMOVED", 30)  # so that the text moves
        self.answers: dict[str, list[int]] = {}
        self.allowed: list[dict[str, list[int]]] = []
        self.corpus = new_corpus(CheckedLock(self.look))

    def teardown(self) -> None:
        self._patch.undo()

    def look(self) -> None:
        """What is counted now is what was there before the change or what is there after it."""
        if not self.allowed:
            return
        longest = max(
            (a for answers in self.allowed for a in answers.values()), key=len, default=[0]
        )
        text = [BOS, *longest]
        for context in ([BOS], text[-2:-1], text[-3:-1], text[1:6] or [0], text[:24]):
            found = self.corpus.successor_counts(np.array(context, np.int32))
            assert found in [counts_by_hand(answers, context) for answers in self.allowed]

    def change(self, after: dict[str, list[int]], do: Callable[[], bool]) -> None:
        self.allowed = [self.answers, after]
        changed = do()
        assert changed == (after != self.answers)
        self.answers, self.allowed = after, []

    @rule(number=st.integers(0, 19), tokens=ANSWERS)
    def add(self, number: int, tokens: list[int]) -> None:
        name = str(number)
        after = {**self.answers, name: self.answers.get(name, tokens)}
        self.change(after, lambda: self.corpus.add(name, np.array(tokens, np.int32)))

    @rule(number=st.integers(0, 19))
    def remove(self, number: int) -> None:
        after = {name: tokens for name, tokens in self.answers.items() if name != str(number)}
        self.change(after, lambda: self.corpus.remove(str(number)))

    @precondition(lambda self: self.answers)
    @rule()
    def remove_oldest(self) -> None:
        # A dict keeps the order of insertion, and an id that was removed comes back as the last.
        oldest = self.corpus.oldest()
        assert oldest == next(iter(self.answers))
        after = {name: tokens for name, tokens in self.answers.items() if name != oldest}
        self.change(after, lambda: self.corpus.remove(oldest))

    @invariant()
    def is_right(self) -> None:
        check(self.corpus, self.answers)


CorpusMachine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
test_random_changes = CorpusMachine.TestCase


def test_a_step_may_read_at_any_moment_of_a_change() -> None:
    """Merges, moves of the text and removals, each seen from before and after its swap."""
    random = np.random.default_rng(8)
    answers: dict[str, list[int]] = {}
    context = np.array([3], np.int32)
    allowed: list[dict[int, int]] = []

    def look() -> None:
        assert not allowed or corpus.successor_counts(context) in allowed

    lock = CheckedLock(look)
    corpus = new_corpus(lock)
    for i in range(600):
        tokens = random.integers(0, 40, int(random.integers(1, 60))).tolist()
        after = {**answers, str(i): tokens}
        allowed[:] = [counts_by_hand(a, [3]) for a in (answers, after)]
        corpus.add(str(i), np.array(tokens, np.int32))
        answers = after
        if i >= 200:
            after = {name: tokens for name, tokens in answers.items() if name != str(i - 200)}
            allowed[:] = [counts_by_hand(a, [3]) for a in (answers, after)]
            corpus.remove(str(i - 200))
            answers = after
    assert lock.looks > 620  # beside one for each answer


def test_a_change_that_fails_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = new_corpus()
    answers = {str(i): np.random.default_rng(i).integers(0, 9, 100).tolist() for i in range(40)}
    for name, tokens in answers.items():
        corpus.add(name, np.array(tokens, np.int32))
    for part, name in (("merge_suffixes", "long"), ("copy_into", "large")):
        with monkeypatch.context() as patch:
            patch.setattr(corpus_module, part, Mock(side_effect=MemoryError))
            with pytest.raises(MemoryError):
                corpus.add(name, np.full(4000 if name == "long" else 9000, 1, np.int32))
        check(corpus, answers)
    answers["long"] = [1] * 4000
    assert corpus.add("long", np.full(4000, 1, np.int32))
    check(corpus, answers)


def test_the_largest_token_ids() -> None:
    corpus = new_corpus()
    assert corpus.add("a", np.array([MAX_CORPUS_TOKEN, 5, 0, 6], np.int32))
    assert not corpus.add("b", np.array([MAX_CORPUS_TOKEN + 1, 5], np.int32))
    assert corpus.successor_counts(np.array([MAX_CORPUS_TOKEN], np.int32)) == {5: 1}
    corpus.add("c", np.full(5000, 7, np.int32))  # sorted in
    assert corpus.successor_counts(np.array([BOS, MAX_CORPUS_TOKEN], np.int32)) == {5: 1}
    corpus.remove("a")
    for context in ([BOS, MAX_CORPUS_TOKEN], [0], [5]):
        assert corpus.successor_counts(np.array(context, np.int32)) == {}
    assert corpus.successor_counts(np.array([BOS], np.int32)) == {7: 1}


def test_many_answers_and_long_ones() -> None:
    random = np.random.default_rng(5)
    corpus = new_corpus()
    answers: dict[str, list[int]] = {}
    for i in range(200):
        length = 9000 if i == 50 else int(random.integers(1, 120))
        tokens = random.integers(0, 40, length).astype(np.int32)
        answers[str(i)] = tokens.tolist()
        assert corpus.add(str(i), tokens)
        if i % 3 == 2:
            del answers[str(i - 1)]
            assert corpus.remove(str(i - 1))
    check(corpus, answers)


def test_memory_that_it_takes_holds_nothing_of_what_was_there() -> None:
    """Freed memory may hold what was removed and had to go."""

    def leave_traces() -> None:
        for _ in range(3):
            left = [np.full(size, 4711, np.int32) for size in range(500, 12000, 100)]
            del left

    leave_traces()
    corpus = new_corpus()
    for number in range(60):
        leave_traces()
        corpus.add(str(number), np.full(100, number, np.int32))
        assert not corpus._text[corpus._length :].any()
    leave_traces()
    filled = new_corpus()
    filled.fill(["1"], [np.array([BOS, 5, 6, BOS], np.int32).tobytes()])
    assert not filled._text[4:].any()


def test_bytes_per_token() -> None:
    random = np.random.default_rng(6)
    corpus = new_corpus()
    for i in range(800):
        corpus.add(str(i), (random.zipf(1.3, 130) % 50257).astype(np.int32))
    assert corpus.num_bytes / corpus.num_tokens <= 10
    for i in range(800, 2400):  # one in, one out
        corpus.remove(str(i - 800))
        corpus.add(str(i), (random.zipf(1.3, 130) % 50257).astype(np.int32))
        assert corpus.num_bytes / corpus.num_tokens <= 11


def test_one_token_repeated() -> None:
    corpus = new_corpus()
    for i in range(50):
        corpus.add(str(i), np.full(400, 7, np.int32))
    assert corpus.successor_counts(np.full(24, 7, np.int32)) == {7: 50 * (400 - 24)}


def test_bad_context() -> None:
    with pytest.raises(ValueError, match="expected 1 to 24 tokens, came 25"):
        new_corpus().successor_counts(np.zeros(25, np.int32))
