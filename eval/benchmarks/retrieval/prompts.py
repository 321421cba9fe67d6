"""What a prompt costs when it arrives among others: it is embedded with them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import numpy as np

from reprise.eval.benchmarks.retrieval.inputs import (
    Figure,
    questions,
)
from reprise.retrieval.search.embedding import Embedder

_BURST = 32
_ROUNDS = 5


class _OneBatch(Embedder):
    """Gives the model all texts at once, padded to the longest."""

    def passes(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(range(len(texts)))] if texts else []


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
