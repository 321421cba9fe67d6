"""Near answers by shared tokens: the worker's search, and one more answer that joins."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.search.token_overlap import TokenOverlap

NAMESPACE = "bench"
PROMPT_TOKENS, ANSWER_TOKENS = 40, 120
CHECKED = 400
MIN_FIRST_SHARE = 0.9
"""Of prompts without their last ten tokens, so many find their own answer first."""
ROUNDS = 2000


def make_updates(count: int, seed: int) -> Iterator[tuple[np.ndarray, AnswerUpdate]]:
    """Prompts [PROMPT_TOKENS] int64, by Zipf's law, and the answers that join with them."""
    random = np.random.default_rng(seed)
    prompts = 500 + random.zipf(1.3, (count, PROMPT_TOKENS)).clip(0, 30_000)
    prompts[:, :2] = random.integers(0, 50_000, (count, 2))  # what a question is about
    response = random.integers(0, 32_000, ANSWER_TOKENS).astype("<i4").tobytes()
    for number, prompt in enumerate(prompts):
        yield (
            prompt,
            AnswerUpdate(
                answer_id=f"{seed:016x}{number:016x}",
                namespace=NAMESPACE,
                added=True,
                prompt_tokens=prompt.astype("<i4").tobytes(),
                response_tokens=response,
            ),
        )


@pytest.mark.parametrize("answers", [100, 100_000])
def bench_search(benchmark: BenchmarkFixture, answers: int) -> None:
    overlap = TokenOverlap()
    overlap.warm_up()
    made = list(make_updates(answers, 0))
    for _, update in made:
        overlap.apply(update)
    chosen = [made[i] for i in np.random.default_rng(1).integers(0, answers, CHECKED)]
    first = 0
    for prompt, update in chosen:
        found = overlap.search(NAMESPACE, prompt[:-10], count=32)
        first += bool(found) and found[0].answer_id == update.answer_id
    assert first >= MIN_FIRST_SHARE * CHECKED
    queries = itertools.cycle([prompt[:-10] for prompt, _ in chosen])
    benchmark(lambda: overlap.search(NAMESPACE, next(queries), count=32))
    benchmark.extra_info["own_answer_first"] = round(first / CHECKED, 3)
    benchmark.extra_info["bytes_per_answer"] = round(overlap.num_bytes / len(overlap))


def bench_join(benchmark: BenchmarkFixture) -> None:
    overlap = TokenOverlap()
    overlap.warm_up()
    updates = make_updates(ROUNDS + 1, 2)
    benchmark.pedantic(overlap.apply, setup=lambda: ((next(updates)[1],), {}), rounds=ROUNDS)
    assert len(overlap) in (1, ROUNDS)
