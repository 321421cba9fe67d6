"""The key of an exact hit, which every request pays for on the event loop."""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from reprise.engine_ext.request.exact_key import exact_key

SAMPLING = {"temperature": 0.0, "max_tokens": 256, "stop": ["\n\n"], "top_p": 1.0, "n": 1}


@pytest.mark.parametrize("prompt_tokens", [100, 2000, 128_000])
def bench_exact_key(benchmark: BenchmarkFixture, prompt_tokens: int) -> None:
    prompt = list(range(prompt_tokens))

    def key(token_ids: list[int]) -> bytes:
        return exact_key(
            namespace="tenant", model_key="model@1", prompt_token_ids=token_ids, sampling=SAMPLING
        )

    assert key(prompt) == key(prompt.copy())
    assert key(prompt) != key([*prompt[:-1], 0])
    benchmark(key, prompt)
