"""Greedy verification of drafts on one core of the CPU, checked against plain torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from reprise.eval.benchmarks.bench_verify import Shape, make_arguments, ours
from reprise.eval.benchmarks.bench_verify_cpu import CACHE_BYTES

ROUNDS = 40


@pytest.mark.parametrize("vocab", [32_000, 151_936])
@pytest.mark.parametrize("batch", [1, 8])
def bench_verification(benchmark: BenchmarkFixture, batch: int, vocab: int) -> None:
    arguments = make_arguments(Shape(batch, 4, vocab, "greedy"), "cpu")
    verify = ours(arguments, "auto")
    elsewhere = np.zeros(CACHE_BYTES, np.uint8)

    def leave_the_caches() -> None:
        elsewhere[::64] += 1

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for given, expected in zip(verify(), ours(arguments, "torch")(), strict=True):
                assert torch.equal(given.int(), expected.int())
            benchmark.pedantic(verify, setup=leave_the_caches, rounds=ROUNDS)
    finally:
        torch.set_num_threads(threads)
