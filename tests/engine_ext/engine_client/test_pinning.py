"""A prefix that the operator names is pinned in each engine that this server sends requests to."""

from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.engine_client.pinning import PinningAsyncLLM


@pytest.mark.parametrize(("is_local", "ranks"), [(False, [0, 1, 2, 3]), (True, [0])])
async def test_a_prefix_is_pinned_in_every_engine_of_this_server(
    monkeypatch: pytest.MonkeyPatch, is_local: bool, ranks: list[int]
) -> None:
    asked = []

    class Queue:
        async def get(self) -> Any:
            return SimpleNamespace(finished=True)

    async def add_request(_engine: Any, *_: Any, data_parallel_rank: int) -> Queue:
        asked.append(data_parallel_rank)
        return Queue()

    monkeypatch.setattr(AsyncLLM, "add_request", add_request)
    monkeypatch.setattr(AsyncLLM, "__del__", lambda _: None)
    engine = PinningAsyncLLM.__new__(PinningAsyncLLM)
    parallel = SimpleNamespace(
        local_engines_only=is_local, data_parallel_size=4, data_parallel_size_local=1
    )
    config: Any = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=100), parallel_config=parallel
    )
    engine.vllm_config, engine._config = config, RepriseConfig()
    await engine.pin_prefix([1, 2, 3])
    assert asked == ranks
