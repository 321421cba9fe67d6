"""A request that waits for the tier is known to vLLM, which ends, counts and fails it as any."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsTensors

from reprise.engine_ext.async_llm import EnhancedAsyncLLM
from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.engine_client import answering
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.verified_answers import VerifiedAnswers
from reprise.engine_ext.request.http_context import HttpRequestContext, current_http_context
from reprise.engine_ext.request.request_control import NotCachedError, RequestControl
from reprise.engine_ext.request.request_info import InfoCollector, counts_id
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.engine_ext.request.shared_keys import SharedKeys
from reprise.engine_ext.request.tenants import SOLE_TENANT
from reprise.retrieval.api.answer import Answer
from reprise.tests.engine_ext.front_ends import core_request, vllm_config
from reprise.tests.engine_ext.outputs.flight_desk import TOKENIZER


class Tier:
    """In the place of `SharedExact`: finds nothing, once it may."""

    trusts = True

    def __init__(self) -> None:
        self.may_answer = asyncio.Event()
        self.asked = 0
        self.is_withdrawn = False
        self.ended_leases: list[str] = []

    def keys_of(self, _: Any, keys: Any) -> SharedKeys | None:
        return None if self.is_withdrawn else SharedKeys(keys, "state", verifiable=False)

    async def find(self, *_: Any) -> list[Any]:
        self.asked += 1
        await self.may_answer.wait()
        return []

    async def find_later(self, *_: Any, **__: Any) -> list[Any]:
        return []

    def ended(self, request_id: str) -> None:
        self.ended_leases.append(request_id)

    def keep_lease(self, request_id: str) -> None: ...

    def store(self, *_: Any, **__: Any) -> None: ...

    def used(self, *_: Any) -> None: ...

    def withdraw(self) -> None:
        self.is_withdrawn = True

    def is_trusted(self, *_: Any) -> bool:
        return False


class Core:
    """In the place of vLLM's client of the engine core."""

    def __init__(self) -> None:
        self.given: list[str] = []

    async def add_request_async(self, request: Any) -> None:
        self.given.append(request.request_id)

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        pass


class Engine(EnhancedAsyncLLM):  # type: ignore[misc]
    """The engine client without an engine."""

    def __init__(self, *, max_num_queued_reqs: int | None = None, tokenizer: Any = None) -> None:
        self.output_processor = OutputProcessor(tokenizer, log_stats=False)
        self.front_end = FrontEnd(vllm_config(), load_config({}), self.output_processor)
        self.tier = Tier()
        self.front_end.exact.shared = self.tier  # type: ignore[assignment]
        self.engine_core = Core()
        self.admission_stats = self.logger_manager = None
        self.scheduler_config = SimpleNamespace(
            max_num_queued_reqs=max_num_queued_reqs, max_num_queued_tokens=None
        )
        self.log_requests = False

    def __del__(self) -> None: ...

    def ask(
        self,
        name: str,
        info: InfoCollector | None = None,
        *,
        prompt: tuple[int, ...] = (),
        namespace: str = "",
        streams_input: bool = False,
        **params: Any,
    ) -> tuple[asyncio.Task[None], RequestOutputCollector]:
        """Have a request added under `name`, by its client; of a prompt of its own."""
        kind = RequestOutputKind.FINAL_ONLY
        known = {"temperature": 0, "detokenize": False, "output_kind": kind}
        request = core_request(
            name,
            SamplingParams(**known | params),
            prompt or (1, 2, sum(name.encode())),
            external_req_id=f"of-{name}",
            resumable=streams_input,
        )
        policy = RequestPolicy(RequestControl(), namespace, info=info, streams_input=streams_input)
        queue = RequestOutputCollector(kind, name)

        async def add() -> None:
            answering._current_policy.set(policy)
            await self._add_request(request, None, None, 0, queue)

        return asyncio.create_task(add()), queue

    async def until_asked(self, num_requests: int) -> None:
        async with asyncio.timeout(60):
            while self.tier.asked < num_requests:
                await asyncio.sleep(0)

    def generate_one(self, name: str) -> None:
        output = EngineCoreOutput(
            request_id=name, new_token_ids=[5, 6], finish_reason=FinishReason.STOP
        )
        self.output_processor.process_outputs([output])


async def tokens_in(queue: RequestOutputCollector) -> list[int]:
    output = await queue.get()
    return list(output.outputs[0].token_ids)  # type: ignore[union-attr]


async def test_a_request_that_waited_is_generated_once() -> None:
    engine = Engine()
    adding, queue = engine.ask("a")
    await engine.until_asked(1)
    assert engine.get_num_unfinished_requests() == 1
    engine.tier.may_answer.set()
    await adding
    assert engine.engine_core.given == ["a"]
    assert engine.get_num_unfinished_requests() == 1
    engine.generate_one("a")
    assert await tokens_in(queue) == [5, 6]
    assert engine.output_processor.request_states == {}
    assert engine.output_processor.external_req_ids == {}
    adding, queue = engine.ask("a")  # from memory: nobody is waited for
    await adding
    assert await tokens_in(queue) == [5, 6]
    assert engine.tier.asked == 1
    assert engine.front_end.errors.counts() == {}  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "internal"), [("of-a", False), ("a", True)])
async def test_an_abort_ends_a_request_that_waits(name: str, internal: bool) -> None:
    engine = Engine()
    adding, queue = engine.ask("a")
    await engine.until_asked(1)
    await engine.abort(name, internal=internal)
    await asyncio.wait_for(adding, 60)  # not for the tier
    output = await queue.get()
    assert output.finished
    assert output.outputs[0].finish_reason == "abort"  # type: ignore[union-attr]
    engine.tier.may_answer.set()
    await asyncio.sleep(0)
    assert engine.engine_core.given == []
    assert engine.tier.ended_leases == ["a"]
    assert engine.output_processor.request_states == {}
    assert len(engine.front_end.flights) == 0  # type: ignore[union-attr]


async def test_a_dead_engine_ends_a_request_that_waits() -> None:
    engine = Engine()
    adding, queue = engine.ask("a")
    await engine.until_asked(1)
    engine.output_processor.propagate_error(EngineDeadError())
    await asyncio.wait_for(adding, 60)
    with pytest.raises(EngineDeadError):
        await queue.get()
    assert engine.engine_core.given == []


async def test_a_client_that_leaves_while_its_request_waits_leaves_nothing() -> None:
    engine = Engine()
    adding, queue = engine.ask("a")
    await engine.until_asked(1)
    adding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await adding
    assert engine.output_processor.request_states == {}
    assert queue.get_nowait() is None
    async with asyncio.timeout(60):
        while engine.tier.ended_leases != ["a"]:
            await asyncio.sleep(0)


async def test_requests_that_wait_count_against_the_bound_and_are_admitted_once() -> None:
    engine = Engine(max_num_queued_reqs=2)
    both = [engine.ask(name)[0] for name in "ab"]
    await engine.until_asked(2)
    refused, _ = engine.ask("c")
    with pytest.raises(GracefulHTTPError):
        await asyncio.wait_for(refused, 60)
    engine.tier.may_answer.set()
    await asyncio.gather(*both)
    assert sorted(engine.engine_core.given) == ["a", "b"]
    refused, _ = engine.ask("c")
    with pytest.raises(GracefulHTTPError):
        await refused
    engine.generate_one("a")
    await engine.ask("c")[0]
    assert engine.engine_core.given[-1] == "c"


async def test_workers_are_not_asked_about_what_the_engine_was_not_given() -> None:
    engine, info = Engine(max_num_queued_reqs=1), InfoCollector()
    engine.tier.may_answer.set()
    await engine.ask("a", info)[0]
    refused, _ = engine.ask("b", info)
    with pytest.raises(GracefulHTTPError):
        await refused
    assert info.counts_ids == [counts_id(info.nonce, "a")]
    engine.generate_one("a")
    is_sending = asyncio.Event()

    async def send(_: Any) -> None:
        is_sending.set()
        await asyncio.Event().wait()

    engine.engine_core.add_request_async = send  # type: ignore[method-assign]
    left, _ = engine.ask("c", info)
    async with asyncio.timeout(60):
        await is_sending.wait()
    left.cancel()
    with pytest.raises(asyncio.CancelledError):
        await left
    assert info.counts_ids == [counts_id(info.nonce, "a")]


async def test_a_front_end_that_closes_lets_go_of_what_waits() -> None:
    engine = Engine()

    async def is_cancelled(*_: Any) -> list[Any]:
        raise asyncio.CancelledError  # as a look-up whose thread never began

    engine.tier.find = is_cancelled  # type: ignore[method-assign]
    adding, _ = engine.ask("a")
    await adding
    assert engine.engine_core.given == ["a"]


@pytest.mark.parametrize("stop", [None, ["sw"]])
async def test_workers_are_asked_about_what_follows_a_verified_answer(
    stop: list[str] | None,
) -> None:
    """A stop string ends an answer where nobody but the detokenizer knows: nothing follows."""
    engine, info = Engine(tokenizer=TOKENIZER), InfoCollector()
    front_end, prompt, tokens = engine.front_end, (1, 2, 3), TOKENIZER.encode("answer")
    assert front_end is not None
    front_end.others.verified = VerifiedAnswers(
        vllm_config(),
        engine.output_processor,
        submit=engine._submit,
        flights=front_end.flights,
        replayer=front_end._replayer,
        exact=front_end.exact,
        metrics=front_end.metrics,
        counts=front_end.counts,
        errors=front_end.errors,
    )
    stored = Answer.create(
        prompt_token_ids=prompt,
        response_token_ids=tokens,
        namespace="",
        model_key="m",
        exact_key=b"k" * 16,
    )

    async def find(*_: Any) -> list[Answer]:
        return [stored]

    engine.tier.find = find  # type: ignore[method-assign]
    adding, queue = engine.ask("a", info, prompt=prompt, detokenize=True, max_tokens=50, stop=stop)
    await adding
    (check,) = engine.engine_core.given
    assert info.counts_ids == []  # the engine generates nothing of the check
    ids = torch.tensor([*prompt[1:], *tokens])
    said = EngineCoreOutput(
        request_id=check,
        new_token_ids=[0],
        finish_reason=FinishReason.LENGTH,
        new_prompt_logprobs_tensors=LogprobsTensors(
            ids[:, None].repeat(1, 3), torch.zeros(len(ids), 3), torch.ones(len(ids))
        ),
        prefill_stats=PrefillStats(num_prompt_tokens=len(ids) + 1, num_computed_tokens=len(ids)),
    )
    engine.output_processor.process_outputs([said])
    await asyncio.sleep(0)
    if stop is None:
        assert engine.engine_core.given == [check, "a"]
        assert info.counts_ids == [counts_id(info.nonce, "a")]
    else:
        assert await tokens_in(queue) == tokens[:4]
        assert engine.engine_core.given == [check]
        assert info.counts_ids == []
    assert front_end.errors.counts() == {}


async def test_what_the_cache_never_has_is_refused_where_nothing_may_be_generated() -> None:
    engine = Engine()
    engine._config, engine.is_sole_tenant = load_config({}), True
    asks = {"x-reprise-cache": "only-if-cached"}
    http_context = HttpRequestContext(asks, SOLE_TENANT)
    token = current_http_context.set(http_context)
    try:
        with pytest.raises(NotCachedError):
            await engine.add_request("a", {"prompt_token_ids": [1]}, SamplingParams(n=2))
    finally:
        current_http_context.reset(token)
    assert http_context.outcome() == "miss; reason=n"


async def test_the_id_of_a_request_with_several_answers_is_live_until_all_are_over() -> None:
    engine = Engine()
    engine._config = load_config({})
    engine.tier.may_answer.set()
    engine.output_processor.parent_requests["a"] = object()  # type: ignore[assignment]
    message = "a request of this id is not over"
    with pytest.raises(VLLMValidationError, match=message):
        await engine.add_request("a", {"prompt_token_ids": [1]}, SamplingParams(n=2))
    with pytest.raises(VLLMValidationError, match=message):
        await engine.ask("a")[0]
    assert engine.engine_core.given == []


async def test_what_is_asked_or_ends_while_weights_change_is_neither_kept_nor_shared() -> None:
    """Of several engines, one has new weights before another."""
    engine, shared = Engine(), []
    front_end = engine.front_end
    assert front_end is not None
    engine.tier.may_answer.set()
    engine.tier.store = lambda answer, **_: shared.append(answer)  # type: ignore[method-assign]
    await engine.ask("a")[0]

    async def change(*_: Any) -> None:
        engine.generate_one("a")
        await engine.ask("b")[0]
        await engine.ask("c")[0]
        engine.generate_one("b")

    engine.engine_core.collective_rpc_async = change  # type: ignore[attr-defined]
    await engine.collective_rpc("reload_weights")
    engine.generate_one("c")
    assert front_end.exact.memory.stats().answers == 0
    assert shared == []
    await engine.ask("d")[0]
    engine.generate_one("d")
    assert front_end.exact.memory.stats().answers == 1
    assert front_end.errors.counts() == {}


@pytest.mark.parametrize("has_left", [False, True])
async def test_a_request_whose_id_is_live_is_refused_and_changes_nothing(has_left: bool) -> None:
    """vLLM would take it for input of the live one, whose answer would be stored as its own."""
    engine = Engine()
    engine.tier.may_answer.set()
    front_end = engine.front_end
    assert front_end is not None
    adding, queue = engine.ask("a")
    await adding
    if has_left:  # and the engine goes on under its id, for one that follows
        adding, queue = engine.ask("b", prompt=(1, 2, ord("a")))
        await adding
        await engine.abort("a", internal=True)
    watcher = front_end.flights.watcher_of("a")
    assert watcher is not None
    for prompt in ((), (4, 5)):
        for namespace in ("", "another"):
            again, _ = engine.ask("a", prompt=prompt, namespace=namespace)
            with pytest.raises(VLLMValidationError, match="a request of this id is not over"):
                await again
    assert front_end.flights.watcher_of("a") is watcher
    assert engine.engine_core.given == ["a"]
    engine.generate_one("a")
    assert await tokens_in(queue) == [5, 6]
    assert front_end.exact.memory.stats().answers == 1
    assert not front_end.is_live("a")
    again, queue = engine.ask("a", prompt=(4, 5), namespace="another")
    await again
    assert engine.engine_core.given == ["a", "a"]
    assert front_end.errors.counts() == {}


async def test_pieces_of_streaming_input_are_vllms() -> None:
    engine = Engine()
    for _ in range(2):
        await engine.ask("a", streams_input=True)[0]
    assert engine.engine_core.given == ["a", "a"]
    assert engine.output_processor.has_request("a")
    assert len(engine.front_end.flights) == 0  # type: ignore[union-attr]
