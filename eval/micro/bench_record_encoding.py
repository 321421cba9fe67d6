"""An answer to the bytes that tiers keep, and back."""

from __future__ import annotations

import msgspec
import numpy as np
from pytest_benchmark.fixture import BenchmarkFixture

from reprise.retrieval import Answer
from reprise.retrieval.tiers.record import decode_record, encode_record


def make_answer() -> Answer:
    random = np.random.default_rng(0)
    answer = Answer.create(
        prompt_token_ids=random.integers(32_000, size=400),
        response_token_ids=random.integers(32_000, size=150),
        prompt_text="How do I cancel my order? " * 60,
        response_text="You can cancel it in the app. " * 20,
        namespace="bench",
    )
    vector = random.standard_normal(384).astype("<f2").tobytes()
    return msgspec.structs.replace(answer, embedding=vector, embedder="all-MiniLM-L6-v2")


def bench_encode(benchmark: BenchmarkFixture) -> None:
    answer = make_answer()
    record = benchmark(encode_record, answer)
    assert decode_record(record) == answer
    benchmark.extra_info["record_bytes"] = len(record)


def bench_decode(benchmark: BenchmarkFixture) -> None:
    answer = make_answer()
    assert benchmark(decode_record, encode_record(answer)) == answer
