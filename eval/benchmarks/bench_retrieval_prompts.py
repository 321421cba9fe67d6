"""What a prompt costs when it arrives: found by shared tokens, and embedded among others."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from reprise.eval.benchmarks.bench_retrieval_inputs import (
    NAMESPACE,
    Figure,
    quantiles_us,
    questions,
)
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.token_overlap import TokenOverlap

_PROMPT_TOKENS, _ANSWER_TOKENS = 40, 120
_QUERIES = 400
_BURST = 32
_ROUNDS = 5
_LEAST_FIRST = 0.9


class _OneBatch(Embedder):
    """Gives the model all texts at once, padded to the longest."""

    def passes(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(range(len(texts)))] if texts else []


def shared_token_figures(counts: tuple[int, ...], *, seed: int) -> list[Figure]:
    """Searches among so many answers, tokens drawn by Zipf's law.

    Raises:
        AssertionError: Three quarters of a prompt too seldom find its own answer first.
    """
    random = np.random.default_rng(seed)
    prompts = 500 + random.zipf(1.3, (max(counts), _PROMPT_TOKENS)).clip(0, 30_000)
    prompts[:, 0] = random.integers(0, 50_000, len(prompts))  # what a question is about
    prompts[:, 1] = random.integers(0, 50_000, len(prompts))
    response = random.integers(0, 32_000, _ANSWER_TOKENS).astype("<i4").tobytes()
    overlap = TokenOverlap()
    overlap.warm_up()
    figures = []
    took: list[float] = []
    for count in sorted(counts):
        for number in range(len(overlap), count):
            update = AnswerUpdate(
                answer_id=f"{number:032x}",
                namespace=NAMESPACE,
                added=True,
                prompt_tokens=prompts[number].astype("<i4").tobytes(),
                response_tokens=response,
            )
            began_s = time.perf_counter()
            overlap.apply(update)
            took.append(time.perf_counter() - began_s)
        searched, first = [], 0
        for number in random.integers(0, count, _QUERIES).tolist():
            query = prompts[number][:-10]
            began_s = time.perf_counter()
            found = overlap.search(NAMESPACE, query, count=32)
            searched.append(time.perf_counter() - began_s)
            first += bool(found) and found[0].answer_id == f"{number:032x}"
        share = first / _QUERIES
        assert share >= _LEAST_FIRST, f"{share} found their own answer first"
        p50, p99 = quantiles_us(searched)
        figures += [
            Figure("tokens", f"own answer first, {count} answers", share, "share"),
            Figure("tokens", f"search by shared tokens, {count} answers, p50", p50, "us"),
            Figure("tokens", f"search by shared tokens, {count} answers, p99", p99, "us"),
        ]
    bytes_each = overlap.num_bytes / len(overlap)
    figures += [
        Figure("tokens", "an answer joins, p50", quantiles_us(took)[0], "us"),
        Figure("tokens", "held per answer, its 160 tokens included", bytes_each, "bytes"),
    ]
    return figures


def burst_figures(*, seed: int) -> list[Figure]:
    """Prompts of unlike lengths that arrive together, embedded in passes and as one batch.

    Raises:
        AssertionError: The vectors differ.
    """
    random = np.random.default_rng(seed)
    sentences = questions(2000, seed=seed)
    # As in a chat: half of them are of one or two sentences, a few of a dozen and more.
    lengths = np.ceil(random.lognormal(0.6, 0.9, _BURST * _ROUNDS)).astype(int)
    texts = [" ".join(random.choice(sentences, length)) for length in lengths]
    embedders = Embedder(threads=1, batch_size=_BURST), _OneBatch(threads=1)
    took: tuple[list[float], list[float]] = ([], [])
    agreed = []
    for embedder in embedders:
        embedder.encode(["the first one"])
    for begin in range(0, len(texts), _BURST):
        vectors = []
        for embedder, seconds in zip(embedders, took, strict=True):
            began_s = time.perf_counter()
            vectors.append(embedder.encode(texts[begin : begin + _BURST]))
            seconds.append(time.perf_counter() - began_s)
        agreed.append(float((vectors[0] * vectors[1]).sum(axis=1).min()))
    assert min(agreed) > 0.99, f"vectors differ: cosine {min(agreed)}"
    one, other = (statistics.median(seconds) / _BURST * 1e3 for seconds in took)
    return [
        Figure("burst", f"{_BURST} unlike prompts embedded in passes, each", one, "ms"),
        Figure("burst", f"{_BURST} unlike prompts embedded as one batch, each", other, "ms"),
        Figure("burst", "as one batch, to passes", other / one, "times"),
    ]
