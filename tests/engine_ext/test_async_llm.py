"""Where EnhancedAsyncLLM takes AsyncLLM's place, where it does not, and how it stands in it."""

import asyncio
import os
import tempfile
import threading
import time
import weakref
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import StreamingInput
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM

from reprise.engine_ext import async_llm, instances
from reprise.engine_ext.async_llm import EnhancedAsyncLLM, create_enhanced_system
from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.engine_retrieval import ADDRESS_VARIABLE
from reprise.engine_ext.engine_client import answering
from reprise.engine_ext.instances import cleanup_all, get_instance_stats
from reprise.engine_ext.request import draft_counts_fetcher
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy


class ManyEngines:
    """vLLM's client of two data parallel engines with two workers each."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []

    async def call_utility_all_async(self, *asked: Any) -> list[list[str]]:
        self.asked.append(asked)
        return [["a", "b"], ["c", "d"]]


@pytest.fixture
def never_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engine clients that are made here have nothing to clean up."""
    monkeypatch.setattr(AsyncLLM, "__del__", lambda _self: None)


@pytest.mark.usefixtures("never_started")
async def test_the_workers_of_every_data_parallel_engine_are_asked() -> None:
    engine = EnhancedAsyncLLM.__new__(EnhancedAsyncLLM)
    engine.engine_core = ManyEngines()
    assert (await engine.get_stats())["workers"] == ["a", "b", "c", "d"]
    (asked,) = engine.engine_core.asked
    assert asked[:2] == ("collective_rpc", "reprise_stats")


def test_what_never_began_ends_without_a_word() -> None:
    EnhancedAsyncLLM.__new__(EnhancedAsyncLLM).shutdown()


@pytest.mark.usefixtures("never_started")
def test_two_threads_may_end_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's server does: told to end, in a thread; and from the main thread, as that leaves."""
    inside, most, closed = 0, 0, []

    def shutdown(_self: Any, **_named: Any) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.2)
        inside -= 1

    monkeypatch.setattr(AsyncLLM, "__init__", lambda *_arguments, **_named: None)
    monkeypatch.setattr(AsyncLLM, "shutdown", shutdown)
    monkeypatch.setattr(EnhancedAsyncLLM, "_attach_front_end", lambda _self: None)
    monkeypatch.setattr(async_llm, "engine_config", lambda _: None)
    monkeypatch.setattr(async_llm, "end_line", lambda _: "what was saved")
    engine = EnhancedAsyncLLM(SimpleNamespace(), client_addresses={"input_address": "nowhere"})
    engine.front_end = SimpleNamespace(
        close=lambda: closed.append("front end"), figures=SimpleNamespace(stats=dict)
    )
    said: list[str] = []
    monkeypatch.setattr(async_llm.logger, "info", lambda *words: said.append(words[0]))
    threads = [threading.Thread(target=engine.shutdown) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert said == ["what was saved"]
    assert closed


@pytest.mark.usefixtures("never_started")
async def test_what_the_first_request_starts_is_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An engine that is made where no loop runs has its tasks started by its first request. Under
    its policy, prefixes would be looked up and stored as the tenant's."""
    seen = []

    async def pin(_: Any) -> None:
        seen.append(answering._current_policy.get())

    monkeypatch.setattr(async_llm, "pin_configured", pin)
    monkeypatch.setattr(AsyncLLM, "_run_output_handler", lambda _self: None)
    monkeypatch.setattr(EnhancedAsyncLLM, "_attach_front_end", lambda _self: None)
    monkeypatch.setattr(EnhancedAsyncLLM, "pins_prefixes", True)
    engine = EnhancedAsyncLLM.__new__(EnhancedAsyncLLM)
    engine._config = load_config({"kv_pins": {"prefixes": ["a prefix"]}})
    engine._is_first_api_server = True
    token = answering._current_policy.set(RequestPolicy(RequestControl(), "tenant"))
    engine._run_output_handler()
    answering._current_policy.reset(token)
    assert engine._pinning is not None
    await engine._pinning
    assert seen == [None]


@pytest.mark.usefixtures("never_started")
@pytest.mark.parametrize("index", [0, 1])
async def test_of_several_api_servers_the_first_asks_the_workers_and_none_starts_retrieval(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, index: int
) -> None:
    announced = []
    lines = []
    speculative = SimpleNamespace(num_speculative_tokens=16)
    vllm_config: Any = SimpleNamespace(additional_config={}, speculative_config=speculative)

    def start(_self: Any, _config: Any, *_args: Any, **_kwargs: Any) -> None:
        announced.append(os.environ.get(ADDRESS_VARIABLE))

    monkeypatch.setattr(AsyncLLM, "__init__", start)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(EnhancedAsyncLLM, "_attach_front_end", lambda _self: None)
    monkeypatch.setattr(async_llm.logger, "info", lambda *words: lines.append(words))
    engine = EnhancedAsyncLLM(
        vllm_config, client_addresses={"input": "x"}, client_count=3, client_index=index
    )
    assert announced == [None]
    assert len(lines) == (index == 0)
    engine.engine_core = ManyEngines()
    reports: list[Any] = []
    figures = SimpleNamespace(report=lambda *each: reports.append(each[0]))
    engine.front_end = SimpleNamespace(figures=figures)  # type: ignore[assignment]
    await engine.report()
    assert reports == [["a", "b", "c", "d"] if index == 0 else None]
    EnhancedAsyncLLM(vllm_config)
    assert announced[1] is not None


async def eventually(condition: Callable[[], Any]) -> None:
    deadline_s = time.monotonic() + 60.0
    while not condition():
        assert time.monotonic() < deadline_s, "waited in vain"
        await asyncio.sleep(0.02)


async def generate(
    engine: AsyncLLM, prompt: Any, request_id: str, kind: RequestOutputKind, **params: Any
) -> tuple[str, list[int], str | None, int]:
    """Text, token ids, finish reason, and the number of outputs that they came in."""
    settings = SamplingParams(
        output_kind=kind, **{"temperature": 0, "max_tokens": 60, "ignore_eos": True, **params}
    )
    text, token_ids, count, reason = "", [], 0, None
    async for output in engine.generate(prompt, settings, request_id):
        assert output.request_id == request_id
        completion = output.outputs[0]
        is_delta = kind is RequestOutputKind.DELTA
        text = text + completion.text if is_delta else completion.text
        new = list(completion.token_ids)
        token_ids = token_ids + new if is_delta else new
        reason = completion.finish_reason
        count += 1
    return text, token_ids, reason, count


async def is_healthy(engine: EnhancedAsyncLLM) -> None:
    """In the end: on a busy machine its retrieval process may be silent for some seconds."""
    deadline_s = time.monotonic() + 60.0
    while (health := await engine.health_check())["state"] != "ready":
        assert time.monotonic() < deadline_s, health
        await asyncio.sleep(0.1)


async def it_is_an_async_llm(engine: EnhancedAsyncLLM) -> None:
    assert isinstance(engine, AsyncLLM)
    await is_healthy(engine)
    assert await engine.is_tracing_enabled() is False


async def a_repeat_has_the_shape_that_was_asked_for(engine: EnhancedAsyncLLM) -> None:
    first = await generate(engine, "How do I", "first", RequestOutputKind.DELTA)
    assert len(first[1]) == 60
    for kind in RequestOutputKind:
        again = await generate(engine, "How do I", f"again-{kind.name}", kind)
        assert again[:3] == first[:3]
        assert (again[3] == 1) == (kind is RequestOutputKind.FINAL_ONLY)
    counts = (await engine.get_stats())["front_end"]["counts"]
    assert (counts["exact"], counts["miss"], counts["stored"]) == (3, 1, 1)


async def salts_isolate(engine: EnhancedAsyncLLM) -> None:
    for salt in ("a", "b"):
        prompt = {"prompt": "behind a salt", "cache_salt": salt}
        await generate(engine, prompt, f"salt-{salt}", RequestOutputKind.FINAL_ONLY)
    namespaces = engine.front_end.exact.memory.namespaces()  # type: ignore[union-attr]
    assert namespaces["salt-a"] == namespaces["salt-b"] == 1


async def nonsense_is_refused_before_the_engine(engine: EnhancedAsyncLLM) -> None:
    with pytest.raises(VLLMValidationError, match="reprise_cache"):
        await generate(
            engine,
            "x",
            "nonsense",
            RequestOutputKind.FINAL_ONLY,
            extra_args={"reprise_cache": "perhaps"},
        )


async def a_client_that_leaves_leaves_nothing_behind(engine: EnhancedAsyncLLM) -> None:
    async def leave() -> None:
        settings = SamplingParams(
            temperature=0, max_tokens=400, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        async for _ in engine.generate("left alone", settings, "leaves"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await leave()
    await eventually(
        lambda: not engine.get_num_unfinished_requests() and not engine.front_end.flights  # type: ignore[union-attr]
    )


async def other_weights_end_what_was_stored(engine: EnhancedAsyncLLM) -> None:
    await generate(engine, "weights", "before", RequestOutputKind.FINAL_ONLY)
    await engine.update_weight_version("next")
    assert engine.front_end.exact.memory.stats().answers == 0  # type: ignore[union-attr]
    await generate(engine, "weights", "after", RequestOutputKind.FINAL_ONLY)
    await generate(engine, "weights", "again", RequestOutputKind.FINAL_ONLY)
    assert engine.front_end.exact.memory.stats().answers == 1  # type: ignore[union-attr]


async def a_paused_engine_answers_nothing(engine: EnhancedAsyncLLM) -> None:
    first = await generate(engine, "pause", "before", RequestOutputKind.FINAL_ONLY)
    # In the one mode in which vLLM 0.33 queues new requests too.
    await engine.pause_generation(mode="keep")
    asked = generate(engine, "pause", "meanwhile", RequestOutputKind.FINAL_ONLY)
    waits = asyncio.create_task(asked)
    await asyncio.sleep(0.5)
    assert not waits.done()
    await engine.resume_generation()
    assert (await waits)[:3] == first[:3]
    counts = engine.front_end.counts["exact"]  # type: ignore[union-attr]
    again = await generate(engine, "pause", "after", RequestOutputKind.FINAL_ONLY)
    assert again[:3] == first[:3]
    assert engine.front_end.counts["exact"] == counts + 1  # type: ignore[union-attr]


async def who_asks_gets_information(engine: EnhancedAsyncLLM) -> None:
    async def ask(request_id: str, prompt: str, **params: Any) -> Any:
        settings = SamplingParams(
            max_tokens=60, ignore_eos=True, output_kind=RequestOutputKind.DELTA, **params
        )
        infos = [
            getattr(output, "reprise_info", None)
            async for output in engine.generate(prompt, settings, request_id)
        ]
        assert infos[:-1] == [None] * (len(infos) - 1)
        return infos[-1]

    wants = {"extra_args": {"reprise_info": True}}
    assert await ask("silent", "tell me", temperature=0) is None
    told = await ask("told", "tell me more", temperature=0, **wants)
    assert told.cache in (("miss",), ("semantic",))  # as the search was in time or not
    assert told.retrieval_ms is None or 0 < told.retrieval_ms < 60_000
    assert (told.similarity is not None) == (told.cache == ("semantic",))
    assert (told.is_cached, 0 < told.took_ms < 600_000) == (False, True)
    counts = told.drafts.by_source.values()
    assert told.drafts.steps + sum(count.accepted for count in counts) == 59
    again = await ask("again", "tell me more", temperature=0, **wants)
    assert (again.cache, again.drafts.steps, again.retrieval_ms) == (("exact",), 0, None)
    assert (again.is_cached, again.similarity) == (True, None)
    assert again.took_ms > 0
    # A stop string ends it here, before the engine knows.
    text = (await generate(engine, "tell me so", "text", RequestOutputKind.FINAL_ONLY))[0]
    stopped = await ask("stopped", "tell me so", temperature=0, stop=[text[20:24]], **wants)
    assert stopped.drafts.steps > 0
    both = await ask("both", "tell me twice", temperature=1.0, n=2, **wants)
    assert set(both.cache) <= {"miss", "semantic"}
    counts = both.drafts.by_source.values()
    assert both.drafts.steps + sum(count.accepted for count in counts) == 2 * 59


async def streamed_input_ends_as_no_prompt_of_its_own(engine: EnhancedAsyncLLM) -> None:
    """vLLM ends it by a request of one token that is the same for all."""

    async def stream(name: str, prompt: str) -> list[int]:
        async def pieces() -> AsyncGenerator[StreamingInput, None]:
            yield StreamingInput(prompt=prompt)

        settings = SamplingParams(
            temperature=0, max_tokens=20, ignore_eos=True, output_kind=RequestOutputKind.DELTA
        )
        outputs = [each async for each in engine.generate(pieces(), settings, name)]
        return [token_id for each in outputs for token_id in each.outputs[0].token_ids]

    front_end = engine.front_end
    assert front_end is not None
    stored, kinds = front_end.exact.memory.stats().answers, dict(front_end.counts)
    prompts = ["where is it", "who is there", "what is new"]
    one, *others = [await stream(f"stream {each}", each) for each in prompts]
    both = await asyncio.gather(*(stream(f"again {each}", each) for each in prompts[1:]))
    assert others == both
    assert one != others[0]
    assert front_end.exact.memory.stats().answers == stored
    assert [front_end.counts[kind] - kinds.get(kind, 0) for kind in ("exact", "followed")] == [0, 0]
    assert len(front_end.flights) == 0
    for prompt, token_ids in zip(prompts, [one, *others], strict=True):
        plain = await generate(engine, prompt, prompt, RequestOutputKind.FINAL_ONLY, max_tokens=20)
        assert plain[1] == token_ids


async def metrics_follow_the_workers(engine: EnhancedAsyncLLM) -> None:
    await engine.report()
    (worker,) = (await engine.get_stats())["workers"]
    assert worker["provider"]["steps"] > 0
    assert (await engine.health_check())["errors"] == {}


async def all_engines_of_a_process_are_known(engine: EnhancedAsyncLLM) -> None:
    (stats,) = await get_instance_stats()
    assert stats["model"] == engine.model_config.served_model_name
    assert stats["front_end"].keys() == (await engine.get_stats())["front_end"].keys()
    assert cleanup_all() == 1
    assert await get_instance_stats() == []
    assert cleanup_all() == 0


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_on_a_real_engine(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine client without a server around it; one engine for all of the above."""
    # However long the machine stands still.
    monkeypatch.setattr(draft_counts_fetcher, "_TIMEOUT_S", 60.0)
    # Tests before have made some that were never started.
    monkeypatch.setattr(instances, "_running", weakref.WeakSet())
    args = AsyncEngineArgs(
        model=str(demo_model),
        enforce_eager=True,
        max_num_seqs=8,
        max_model_len=512,
        kv_cache_memory_bytes=1 << 28,
    )
    before = asyncio.all_tasks()
    async with create_enhanced_system(args) as engine:
        await it_is_an_async_llm(engine)
        await a_repeat_has_the_shape_that_was_asked_for(engine)
        await salts_isolate(engine)
        await nonsense_is_refused_before_the_engine(engine)
        await a_client_that_leaves_leaves_nothing_behind(engine)
        await other_weights_end_what_was_stored(engine)
        await a_paused_engine_answers_nothing(engine)
        await who_asks_gets_information(engine)
        await streamed_input_ends_as_no_prompt_of_its_own(engine)
        await metrics_follow_the_workers(engine)
        await all_engines_of_a_process_are_known(engine)
    await eventually(lambda: asyncio.all_tasks() == before)


@pytest.mark.usefixtures("never_started")
def test_a_bad_setting_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(AsyncLLM, "__init__", lambda *_args, **_kwargs: started.append(True))
    monkeypatch.setenv("REPRISE_RETRIEVAL__URL", "redi://x")
    vllm_config: Any = SimpleNamespace(additional_config={})
    with pytest.raises(ValueError, match="redi://x"):
        EnhancedAsyncLLM(vllm_config)
    assert started == []
