"""What `bench_retrieval.py` measures with: made-up answers and questions, waiting, a Redis."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from reprise.retrieval import Answer
from reprise.retrieval.api.retriever import Retriever
from reprise.retrieval.search.embedding import Embedder

NAMESPACE = "bench"
ANSWER_TOKENS = 150
READY_S = 300.0
_TOPICS = 5000


@dataclass(frozen=True)
class Figure:
    """One measured number."""

    section: str
    name: str
    value: float
    unit: str
    target: str = ""


def clustered(count: int, dim: int, *, seed: int) -> NDArray[np.float32]:
    """Float32 [count, dim] of length 1: many wordings around each of some topics.

    Two of one topic have a cosine of about 0.6, as two wordings of a question have.
    """
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((_TOPICS, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    rows = centres[generator.integers(_TOPICS, size=count)]
    rows += 0.8 * generator.standard_normal((count, dim), dtype=np.float32) / np.sqrt(dim)
    normalised: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return normalised


def make_answers(count: int, embedder: Embedder, *, seed: int) -> Iterator[Answer]:
    """Answers of 150 tokens with made-up embeddings, so that inserting costs no embedding."""
    generator = np.random.default_rng(seed)
    vectors = clustered(count, embedder.dim, seed=seed).astype("<f2")
    for number in range(count):
        prompt = np.array([number, number + 1, number + 2])
        answer = Answer.create(
            prompt_token_ids=prompt,
            response_token_ids=generator.integers(32_000, size=ANSWER_TOKENS),
            prompt_text=f"made-up question number {number}",
            namespace=NAMESPACE,
        )
        yield msgspec.structs.replace(
            answer, embedding=vectors[number].tobytes(), embedder=embedder.identity
        )


class _StandIn(Embedder):
    """Passes for the default model; a text's vector is made up."""

    def __init__(self) -> None:
        super().__init__("lexical")
        self.name, self.dim = "all-MiniLM-L6-v2", 384

    def encode(self, texts: Sequence[str], namespaces: Sequence[str] = ()) -> NDArray[np.float32]:  # noqa: ARG002
        made = [np.random.default_rng(zlib.crc32(text.encode())) for text in texts]
        rows = np.array([each.standard_normal(self.dim, np.float32) for each in made])
        rows = rows.reshape(len(texts), self.dim)
        units: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return units


def stand_in() -> Embedder:
    """Return what passes for the default model where embedding is not measured."""
    return _StandIn()


def questions(count: int, *, seed: int) -> list[str]:
    """Questions that differ, every fifth of them compound."""
    generator = np.random.default_rng(seed)
    verbs = ("cancel", "change", "track", "return", "pay for", "review", "renew", "share")
    nouns = ("order", "subscription", "invoice", "parcel", "booking", "policy", "ticket", "plan")
    places = ("in the app", "from abroad", "by phone", "without an account", "before Friday")
    made = []
    for number in range(count):
        verb, noun, place = (generator.choice(words) for words in (verbs, nouns, places))
        text = f"How do I {verb} my {noun} {number} {place}"
        if number % 5 == 0:
            text += f" and will I get a refund for {generator.choice(nouns)} {number}"
        made.append(text + "?")
    return made


def quantiles_us(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in microseconds."""
    p50, p99 = np.quantile(np.array(seconds) * 1e6, [0.5, 0.99])
    return float(p50), float(p99)


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call took."""
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s


def wait_for(retriever: Retriever, request_ids: Sequence[str]) -> None:
    """Poll as a decode loop would, until all near answers are there."""
    deadline_s = time.monotonic() + 60
    for request_id in request_ids:
        while retriever.poll(request_id) is None:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"no near answers for {request_id}")
            time.sleep(0.0002)


def wait_until_ready(retriever: Retriever, answers: int) -> None:
    """Until the models are loaded and all answers have joined."""
    deadline_s = time.monotonic() + READY_S
    while retriever.health().state == "starting" or retriever.stats().answers < answers:
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"not ready: {retriever.health()} {retriever.stats()}")
        time.sleep(0.05)
    retriever.flush(READY_S)
