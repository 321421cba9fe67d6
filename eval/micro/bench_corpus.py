"""The corpus of earlier answers: one more answer joins, and what follows a context is counted."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from reprise.eval.benchmarks.bench_drafts import ANSWER, IntArray, make_answers
from reprise.spec.corpus.corpus import Corpus
from reprise.spec.runtime.layout import CORPUS_FIELDS

CACHED_TOKENS = 1_000_000
ROUNDS = 2000


def filled() -> tuple[Corpus, list[IntArray]]:
    """A corpus, and the answers in it."""
    corpus = Corpus(np.zeros(CORPUS_FIELDS, np.int64))
    answers = make_answers(CACHED_TOKENS // ANSWER, 4)
    for number, answer in enumerate(answers):
        corpus.add(str(number), answer)
    return corpus, answers


def bench_insert(benchmark: BenchmarkFixture) -> None:
    """Sorting what is recent in, which comes once for some 30 answers, is in the mean alone."""
    corpus, before = filled()
    answers = iter(make_answers(ROUNDS + 1, 5))
    numbers = itertools.count()
    benchmark.pedantic(
        corpus.add,
        setup=lambda: ((f"new {next(numbers)}", next(answers)), {}),
        rounds=ROUNDS,
    )
    assert len(corpus) == len(before) + next(numbers)
    benchmark.extra_info["bytes_per_token"] = round(corpus.num_bytes / corpus.num_tokens, 2)


@pytest.mark.parametrize("order", [2, 8])
def bench_look_up(benchmark: BenchmarkFixture, order: int) -> None:
    corpus, answers = filled()
    contexts = itertools.cycle([answer[40 : 40 + order] for answer in answers[:200]])
    for answer in answers[:20]:
        assert int(answer[40 + order]) in corpus.successor_counts(answer[40 : 40 + order])
    benchmark(lambda: corpus.successor_counts(next(contexts)))
