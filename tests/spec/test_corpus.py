"""Corpus against counting by hand, under random insertion and removal."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reprise.spec import corpus as corpus_module
from reprise.spec.corpus import Corpus
from reprise.spec.layout import BOS, CORPUS_FIELDS


def new_corpus(max_bytes: int = 1 << 30) -> Corpus:
    return Corpus(np.zeros(CORPUS_FIELDS, np.int64), max_bytes=max_bytes)


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


ANSWERS = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(changes=st.lists(st.tuples(st.booleans(), st.integers(0, 9), ANSWERS), max_size=40))
def test_random_insertion_and_removal(
    monkeypatch: pytest.MonkeyPatch, changes: list[tuple[bool, int, list[int]]]
) -> None:
    monkeypatch.setattr(corpus_module, "MAX_RECENT", 64)  # so that merges happen
    corpus = new_corpus()
    answers: dict[str, list[int]] = {}
    for add, number, tokens in changes:
        answer_id = str(number)
        if add:
            added = corpus.add(answer_id, np.array(tokens, np.int32))
            assert added == (answer_id not in answers)
            answers.setdefault(answer_id, tokens)
        else:
            assert corpus.remove(answer_id) == (answers.pop(answer_id, None) is not None)
    check(corpus, answers)


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


def test_bytes_per_token() -> None:
    random = np.random.default_rng(6)
    corpus = new_corpus()
    for i in range(800):
        corpus.add(str(i), (random.zipf(1.3, 130) % 50257).astype(np.int32))
    assert corpus.num_bytes / corpus.num_tokens <= 16


def test_byte_bound_drops_the_oldest() -> None:
    random = np.random.default_rng(7)
    corpus = new_corpus(max_bytes=120_000)
    answers: dict[str, list[int]] = {}
    for i in range(300):
        tokens = random.integers(0, 1000, 100).astype(np.int32)
        assert corpus.add(str(i), tokens)
        answers[str(i)] = tokens.tolist()
        assert 12 * corpus.num_tokens <= 120_000
    assert corpus.num_bytes <= 2 * 120_000
    kept = {k: v for k, v in answers.items() if int(k) >= 300 - len(corpus)}
    assert 50 < len(kept) < 110
    check(corpus, kept)


def test_one_token_repeated() -> None:
    corpus = new_corpus()
    for i in range(50):
        corpus.add(str(i), np.full(400, 7, np.int32))
    assert corpus.successor_counts(np.full(24, 7, np.int32)) == {7: 50 * (400 - 24)}


def test_bad_context() -> None:
    with pytest.raises(ValueError, match="expected 1 to 24 tokens, came 25"):
        new_corpus().successor_counts(np.zeros(25, np.int32))
