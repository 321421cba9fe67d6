"""A prefix that the operator names is pinned in each engine that this server sends requests to."""

import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.engine_client import pinning
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

    # What does not fill a block would not be pinned: that is said, and nothing is computed.
    async def get_pin_stats(_: Any) -> list[Any]:
        return [None, {"block_tokens": 16}]

    monkeypatch.setattr(PinningAsyncLLM, "get_pin_stats", get_pin_stats)
    await engine.pin_prefix(list(range(16)))
    assert asked == ranks * 2
    with pytest.raises(
        ValueError, match="has 16 tokens, a block of the prefix cache, to 99, got 15"
    ):
        await engine.pin_prefix(list(range(15)))
    assert asked == ranks * 2


async def test_the_log_counts_the_prefixes_that_are_pinned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Engine:
        _config = RepriseConfig.model_validate({"kv_pins": {"prefixes": ["too short", "a prompt"]}})

        def get_tokenizer(self) -> Any:
            return SimpleNamespace(encode=list)

        async def pin_prefix(self, token_ids: list[str]) -> None:
            if token_ids[0] == "t":
                raise ValueError("got 9")

    said: list[str] = []
    monkeypatch.setattr(pinning.logger, "info", lambda text, *given: said.append(text % given))
    monkeypatch.setattr(pinning.logger, "warning", lambda text, *given: said.append(text % given))
    engine: Any = Engine()
    await pinning.pin_configured(weakref.ref(engine))
    assert said == [
        "Reprise: the prefix 'too short' is not pinned: got 9",
        "Reprise: 1 of the 2 prefixes of the settings are pinned.",
    ]
