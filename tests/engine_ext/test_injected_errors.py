"""Whatever fails in the front end: requests are answered as plain vLLM would answer them."""

import asyncio
import contextlib
import inspect
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.exceptions import VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats

from reprise.engine_ext.async_llm import EnhancedAsyncLLM
from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.core.request_hints import RequestHints, has_hints, read_hints
from reprise.engine_ext.engine_client import answering
from reprise.engine_ext.frontend import (
    exact_answers,
    front_end,
    info_reporter,
)
from reprise.engine_ext.frontend.exact_answers import ExactAnswers
from reprise.engine_ext.frontend.exact_memory import ExactMemory
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.info_reporter import InfoReporter
from reprise.engine_ext.frontend.near_answers import NearAnswers
from reprise.engine_ext.frontend.serving_metrics import ServingMetrics
from reprise.engine_ext.frontend.spans import Spans
from reprise.engine_ext.frontend.tracked_request import TrackedRequest
from reprise.engine_ext.outputs import one_token_outputs
from reprise.engine_ext.outputs.one_token_outputs import OneTokenOutputs
from reprise.engine_ext.outputs.replay import Feeder, Replayer
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.engine_ext.request.adapter_epochs import AdapterEpochs
from reprise.engine_ext.request.http_context import HttpRequestContext
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_info import InfoCollector
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.tests.engine_ext.front_ends import core_request, vllm_config

TOKENS = [5, 6, 7, 8]
# Where vLLM calls in; what they call is what may fail. The others are no part of a request's way.
_ENTRANCES = {
    (FrontEnd, "answer"),
    (FrontEnd, "not_admitted"),
    (SingleFlight, "process_outputs"),
    (SingleFlight, "abort_requests"),
    (OneTokenOutputs, "process_outputs"),
    (OneTokenOutputs, "add_request"),
}
# No part of a request's way to its reply, or of the middleware's, which its own tests break.
_ELSEWHERE = {
    # What concerns the tier is broken in `test_shared_exact_faults.py`, where there is one.
    (AdapterEpochs, "loaded_since_s"),
    (ExactAnswers, "model_changed missing fetch _take_in"),
    (ExactMemory, "clear namespaces"),
    (FrontEnd, "close fetch fetch_as_known is_live model_changed open_others waits_for_others"),
    (HttpRequestContext, "add_info outcome take_info"),
    (InfoCollector, "collect generates generates_nothing"),
    (TrackedRequest, "retrieval_ms clauses"),
    (NearAnswers, "health stats clauses"),
    (Replayer, "close"),
    (ServingMetrics, "active errors features pins retrieval shared verified workers"),
    (ServingMetrics, "_add _tier _worker _verified_replays _tokens_verified"),
    (SingleFlight, "__len__ is_led watcher_of"),
    # Of those who follow late, for whom hundreds of tokens have to be there.
    (SingleFlight, "_pass_on_late _fail_left_behind"),
    # Asked for where vLLM has a limit for what waits.
    (SingleFlight, "get_num_unfinished_requests get_num_queued_tokens _without_engine"),
}
# What is there for errors: reached only after another one, and in themselves guarded.
_FOR_ERRORS = {
    (ExactMemory, "remove remove_ids remove_key answers"),
    (FrontEnd, "_withdraw"),
    (Replayer, "fail withdraw"),
    (SingleFlight, "leave _fail _give_up _notify"),
}
_OURS = (
    AdapterEpochs,
    ExactAnswers,
    ExactMemory,
    Feeder,
    FrontEnd,
    TrackedRequest,
    HttpRequestContext,
    InfoCollector,
    NearAnswers,
    OneTokenOutputs,
    Replayer,
    ServingMetrics,
    SingleFlight,
    Spans,
)
_FUNCTIONS = [
    (exact_answers, "refusal"),
    (exact_answers, "exact_keys"),
    (exact_answers, "_has_room"),
    (front_end, "is_determined"),
    (front_end, "TrackedRequest"),
    (one_token_outputs, "parser_may_read"),
    (one_token_outputs, "one_token_each"),
]


def methods() -> Iterator[Any]:
    """Every method of ours that a request may pass through, and functions that these call."""
    left_out = {
        (owner, name) for owner, names in _ELSEWHERE | _FOR_ERRORS for name in names.split()
    }
    for owner in _OURS:
        for name, method in vars(owner).items():
            if not inspect.isfunction(method) or name == "__init__":
                continue
            if (owner, name) not in _ENTRANCES | left_out:
                yield pytest.param(owner, name, id=f"{owner.__name__}.{name}")
    for module, name in _FUNCTIONS:
        yield pytest.param(module, name, id=f"{module.__name__.split('.')[-1]}.{name}")


class FoundNothing:
    """A retriever."""

    def __getattr__(self, _name: str) -> Any:
        return lambda *_args, **_kwargs: None


class World:
    """A front end, vLLM's output processor, and the engine behind them."""

    def __init__(self) -> None:
        self.processor = OutputProcessor(None, log_stats=True)
        settings = load_config({"serving": {"replay_chunk_tokens": 2, "ttl_s": 600.0}})
        self.front_end = FrontEnd(
            vllm_config(),
            settings,
            self.processor,
            retriever=FoundNothing(),  # type: ignore[arg-type]
        )
        self.generating: dict[str, list[int]] = {}
        self._count = 0

    def make(
        self, kind: RequestOutputKind, lora: LoRARequest | None = None, **params: Any
    ) -> tuple[EngineCoreRequest, RequestOutputCollector]:
        self._count += 1
        name = f"r{self._count}"
        sampling = SamplingParams(
            output_kind=kind, detokenize=False, max_tokens=10, **{"temperature": 0, **params}
        )
        request = core_request(name, sampling, lora_request=lora)
        return request, RequestOutputCollector(kind, name)

    def ask(self, kind: RequestOutputKind, **params: Any) -> RequestOutputCollector:
        request, queue = self.make(kind, **params)
        policy = RequestPolicy(RequestControl(), "", HttpRequestContext({}, None), InfoCollector())
        if not self.front_end.answer(request, None, queue, policy):
            self.processor.add_request(request, None, None, 0, queue)
            self.generating[request.request_id] = list(TOKENS)
        return queue

    def step(self) -> None:
        """Two tokens for whoever is being generated for."""
        outputs = []
        for name, rest in list(self.generating.items()):
            del self.generating[name]
            if rest[2:]:
                self.generating[name] = rest[2:]
            reason = None if rest[2:] else FinishReason.STOP
            outputs.append(
                EngineCoreOutput(request_id=name, new_token_ids=rest[:2], finish_reason=reason)
            )
        for name in self.processor.process_outputs(
            outputs, 1.0, IterationStats(), "w"
        ).reqs_to_abort:
            self.generating.pop(name, None)

    def leave(self, queue: RequestOutputCollector) -> None:
        for name in self.processor.abort_requests([queue.request_id], internal=True):
            self.generating.pop(name, None)


async def read(queue: RequestOutputCollector) -> list[int]:
    """What its client gets, in the end."""
    token_ids: list[int] = []
    while True:
        output = await asyncio.wait_for(queue.get(), 60.0)
        new = list(output.outputs[0].token_ids)  # type: ignore[union-attr]
        token_ids = token_ids + new if queue.aggregate else new
        if output.finished:
            return token_ids


async def read_or_error(queue: RequestOutputCollector) -> list[int] | str:
    try:
        return await read(queue)
    except RuntimeError as error:
        return str(error)


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "reprise.engine_ext.core.error_counter.logger.error", lambda *_a, **_k: None
    )
    monkeypatch.setattr(one_token_outputs._parsers_built, "any", True)


@pytest.mark.parametrize("kind", [RequestOutputKind.FINAL_ONLY, RequestOutputKind.DELTA])
@pytest.mark.parametrize(("owner", "name"), methods())
async def test_an_error_in_any_of_our_methods_loses_no_request(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, kind: RequestOutputKind
) -> None:
    called = 0

    def fail(*_args: Any, **_kwargs: Any) -> Any:
        nonlocal called
        called += 1
        raise RuntimeError("injected")

    world = World()
    monkeypatch.setattr(owner, name, fail)
    leader = world.ask(kind)
    early = world.ask(kind)
    world.step()
    late = world.ask(kind)
    leaves = world.ask(kind)
    world.leave(leaves)
    for _ in range(3):
        world.step()
    assert await read(leader) == TOKENS
    for follower in (early, late):
        # One that has failed is told so; it cannot be generated for any more.
        told = await read_or_error(follower)
        assert told == TOKENS or (told == "injected" and owner in (SingleFlight, Feeder))
    adapter = LoRARequest("a", 1, "/nowhere")
    others = [
        world.ask(kind),  # From the cache, where that works.
        world.ask(kind, lora=adapter),
        world.ask(kind, temperature=1.0),  # No exact hit.
    ]
    refused = world.ask(kind, seed=3, temperature=1.0)
    world.front_end.not_admitted(refused.request_id, RuntimeError("queue is full"))
    world.leave(refused)
    with contextlib.suppress(RuntimeError), world.front_end.exact.adapters.change(1, loads=True):
        pass
    for _ in range(3):
        world.step()
        await asyncio.sleep(0)
    for queue in others:
        assert await read(queue) == TOKENS
    assert world.processor.request_states == {}
    assert world.generating == {}
    assert len(world.front_end.flights) == 0
    is_for_streams = name in ("one_token_each", "_go_on")
    assert called or (is_for_streams and kind is RequestOutputKind.FINAL_ONLY)


class Engine(EnhancedAsyncLLM):  # type: ignore[misc]
    """The engine client without an engine: what reaches vLLM is seen."""

    def __init__(self, world: World) -> None:
        self.front_end = world.front_end
        self._config = world.front_end.config
        self._info_reporter = InfoReporter(
            self._ask_for_draft_counts, errors=world.front_end.errors
        )
        self.is_sole_tenant = True
        self.output_processor = world.processor
        self.log_requests = False
        self.aborted: list[str] = []

    def __del__(self) -> None: ...

    async def abort(self, request_id: Any, internal: bool = False) -> None:
        self.aborted += self.output_processor.abort_requests([request_id], internal)


@pytest.mark.parametrize("name", ["resolve_policy", "with_policy"])
@pytest.mark.parametrize("prompt", [{"prompt": "x"}, {"prompt": "x", "cache_salt": "s"}])
async def test_a_request_without_a_plan_goes_on_and_shares_nothing(
    monkeypatch: pytest.MonkeyPatch, name: str, prompt: dict[str, str]
) -> None:
    seen: list[tuple[Any, Any]] = []

    async def add_request(_self: Any, _id: str, prompt: Any, params: Any) -> str:
        seen.append((prompt, params))
        return "queue"

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(AsyncLLM, "add_request", add_request)
    monkeypatch.setattr(answering, name, fail)
    engine = Engine(World())
    for number in range(2):
        params = SamplingParams(temperature=0.5, max_tokens=7)
        assert await engine.add_request(str(number), prompt, params) == "queue"
    (prompt_a, params_a), (prompt_b, _) = seen
    assert (params_a.temperature, params_a.max_tokens) == (0.5, 7)
    assert has_hints(params_a)
    assert read_hints(params_a) == RequestHints(drafts=False, store=False)
    assert len({"s", prompt_a["cache_salt"], prompt_b["cache_salt"]}) == 3
    assert engine.front_end.errors.counts() == {"policy": 2}  # type: ignore[union-attr]


async def test_what_a_client_asks_wrongly_is_refused_all_the_same() -> None:
    params = SamplingParams(extra_args={"reprise_cache": "perhaps"})
    with pytest.raises(VLLMValidationError):
        await Engine(World()).add_request("r", {"prompt": "x"}, params)


async def outputs_of(engine: Engine, **extra: Any) -> list[Any]:
    params = SamplingParams(extra_args=extra)
    return [output async for output in engine.generate({"prompt": "x"}, params, "r")]


async def test_info_that_fails_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    output = SimpleNamespace(finished=True)

    async def generate(_self: Any, *_args: Any, **_kwargs: Any) -> Any:
        yield output

    def fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("injected")

    monkeypatch.setattr(AsyncLLM, "generate", generate)
    engine = Engine(World())
    monkeypatch.setattr(InfoCollector, "collect", fail)
    assert await outputs_of(engine, reprise_info="on") == [output]
    monkeypatch.setattr(info_reporter, "wants_info", fail)
    assert await outputs_of(engine) == [output]
    assert engine.front_end.errors.counts() == {"info": 2}  # type: ignore[union-attr]


async def test_a_refused_request_leaves_nothing_in_its_callers_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or a program's next request would be told of as part of this one."""
    seen: list[Any] = []

    async def generate(_self: Any, *_args: Any, **_kwargs: Any) -> Any:
        seen.append(info_reporter.current_info.get())
        if len(seen) == 1:
            raise RuntimeError("refused")
        yield SimpleNamespace(finished=False)
        seen.append(info_reporter.current_info.get())
        yield SimpleNamespace(finished=False)

    monkeypatch.setattr(AsyncLLM, "generate", generate)
    engine = Engine(World())
    with pytest.raises(RuntimeError, match="refused"):
        await outputs_of(engine, reprise_info="on")
    assert seen[0] is not None
    assert info_reporter.current_info.get() is None
    await outputs_of(engine, reprise_info="on")
    assert isinstance(seen[1], InfoCollector)
    assert seen[1] is not seen[0]
    assert seen[2] is None


async def test_nobody_waits_for_a_leader_that_left_while_it_was_admitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World()
    engine = Engine(world)
    admitting = asyncio.Event()

    async def _add_request(_self: Any, request: Any, prompt: Any, *others: Any) -> None:
        world.processor.add_request(request, prompt, *others)
        admitting.set()
        await asyncio.sleep(60)

    monkeypatch.setattr(AsyncLLM, "_add_request", _add_request)

    async def admit() -> None:
        request, queue = world.make(RequestOutputKind.DELTA)
        token = answering._current_policy.set(RequestPolicy(RequestControl(), ""))
        try:
            await engine._add_request(request, None, None, 0, queue)
        finally:
            answering._current_policy.reset(token)

    task = asyncio.create_task(admit())
    await admitting.wait()
    follower = world.ask(RequestOutputKind.DELTA)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert "has disconnected" in await read_or_error(follower)
    assert engine.aborted == ["r1"]
    assert world.processor.request_states == {}
    assert len(world.front_end.flights) == 0
