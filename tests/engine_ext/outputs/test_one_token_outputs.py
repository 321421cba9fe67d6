"""One token an output: stops, intervals, choices, metrics and errors, where streams are parsed."""

from typing import Any

import numpy as np
import pytest
from vllm.parser import ParserManager
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.outputs import LogprobsLists

from reprise.engine_ext.outputs import one_token_outputs
from reprise.engine_ext.outputs.one_token_outputs import (
    OneTokenCollector,
    one_token_each,
    parser_may_read,
    watch_parsers,
)
from reprise.engine_ext.request.http_context import HttpRequestContext, current_http_context
from reprise.tests.engine_ext.outputs.parsed_streams import (
    TOKENIZER,
    Rig,
    drain,
    emit,
    granite_case,
    make,
    without_drafts,
)


@pytest.fixture(autouse=True)
def _a_parser_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_token_outputs._parsers_built, "any", True)


@pytest.mark.parametrize("step", [1, 2, 5, 17])
def test_a_stop_string_inside_a_draft_ends_the_stream_there(step: int) -> None:
    text = "one two three four"
    ends = []
    for steps in (1, step):
        rig = Rig()
        request, queue = make("r", stop=["thr"], seed=0)
        rig.processor.add_request(request, "question", None, 0, queue)
        to_abort = []
        token_ids = TOKENIZER.encode(text, add_special_tokens=False)
        for start in range(0, len(token_ids), steps):
            output = EngineCoreOutput(
                request_id="r", new_token_ids=token_ids[start : start + steps]
            )
            result = rig.processor.process_outputs([output], 1.0, IterationStats(), "w")
            to_abort += result.reqs_to_abort
        ends.append([(o.outputs[0].text, o.outputs[0].stop_reason) for o in drain(queue)])
        assert to_abort == ["r"]
    assert ends[0] == ends[1]
    assert "".join(piece for piece, _ in ends[0]) == "one two "


@pytest.mark.parametrize("interval", [2, 5])
def test_a_stream_interval_holds_as_without_drafts(interval: int) -> None:
    outputs = []
    for step in (1, 17):
        rig = Rig()
        request, queue = make("r", stream_interval=interval)
        rig.processor.add_request(request, "question", None, 0, queue)
        emit(rig.processor, "r", list(range(5, 40)), step=step)
        outputs.append([(o.outputs[0].text, o.outputs[0].token_ids) for o in drain(queue)])
    assert outputs[0] == outputs[1]
    assert {len(token_ids) for _, token_ids in outputs[1][1:-1]} == {interval}


def test_several_choices_are_kept_apart() -> None:
    rig = Rig()
    request, queue = make("r", n=2, seed=0)
    parent = ParentRequest(request)
    for index in range(2):
        child, _ = make("r", seed=index)
        child.request_id, child.sampling_params = parent.get_child_info(index)
        rig.processor.add_request(child, "question", parent, index, queue)
    names = list(rig.processor.request_states)
    for start, reason in ((10, None), (20, FinishReason.LENGTH)):
        outputs = [
            EngineCoreOutput(
                request_id=name,
                new_token_ids=[start + 100 * index, start + 100 * index + 1],
                finish_reason=reason,
            )
            for index, name in enumerate(names)
        ]
        rig.processor.process_outputs(outputs, 1.0, IterationStats(), "w")
    got: dict[int, list[int]] = {0: [], 1: []}
    handed_out = drain(queue)
    for output in handed_out:
        (completion,) = output.outputs
        assert len(completion.token_ids) == 1
        got[completion.index] += completion.token_ids
    assert got == {0: [10, 11, 20, 21], 1: [110, 111, 120, 121]}
    assert [output.finished for output in handed_out] == [False] * 7 + [True]


def test_an_engine_that_ended_a_request_itself_is_not_asked_to_abort_it() -> None:
    rig = Rig()
    request, queue = make("r", stop=["tw"], seed=0)
    rig.processor.add_request(request, "question", None, 0, queue)
    output = EngineCoreOutput(
        request_id="r",
        new_token_ids=TOKENIZER.encode("one two", add_special_tokens=False),
        finish_reason=FinishReason.LENGTH,
    )
    assert rig.processor.process_outputs([output], 1.0, None, "w").reqs_to_abort == []
    assert drain(queue)[-1].outputs[0].stop_reason == "tw"


def test_one_step_is_one_latency_and_all_its_tokens_count() -> None:
    rig = Rig()
    request, _queue = make("r")
    rig.processor.add_request(request, "question", None, 0, _queue)
    other, other_queue = make("other")
    rig.processor.add_request(other, "question", None, 0, other_queue)
    seen = []
    for at_s, reason in ((1.0, None), (3.0, None), (7.0, FinishReason.LENGTH)):
        statistics = IterationStats()
        outputs = [
            EngineCoreOutput(request_id=name, new_token_ids=tokens, finish_reason=reason)
            for name, tokens in (("r", [5, 6, 7]), ("other", [8]))
        ]
        rig.processor.process_outputs(outputs, at_s, statistics, "w")
        seen.append(statistics)
    assert [s.num_generation_tokens for s in seen] == [4, 4, 4]
    assert [s.inter_token_latencies_iter for s in seen] == [[], [2.0, 2.0], [4.0, 4.0]]
    assert [len(s.time_to_first_tokens_iter) for s in seen] == [2, 0, 0]
    assert [f.num_generation_tokens for f in seen[-1].finished_requests] == [3, 9]


def test_what_belongs_to_a_token_goes_with_it() -> None:
    logprobs = LogprobsLists(
        np.arange(6).reshape(3, 2), np.arange(6.0).reshape(3, 2), np.arange(3), [0, 3]
    )
    output = EngineCoreOutput(
        request_id="r",
        new_token_ids=[5, 6, 7],
        new_logprobs=logprobs,
        routed_experts=np.arange(5),
        finish_reason=FinishReason.STOP,
        stop_reason=7,
        kv_transfer_params={"a": 1},
    )
    pieces = one_token_each(output)
    assert [piece.new_token_ids for piece in pieces] == [[5], [6], [7]]
    assert [piece.finish_reason for piece in pieces] == [None, None, FinishReason.STOP]
    assert [piece.stop_reason for piece in pieces] == [None, None, 7]
    assert [piece.routed_experts.tolist() for piece in pieces] == [[0, 1, 2], [3], [4]]
    assert [piece.kv_transfer_params for piece in pieces] == [{"a": 1}] * 3
    for index, piece in enumerate(pieces):
        assert piece.new_logprobs is not None
        assert piece.new_logprobs.logprobs.tolist() == [[2.0 * index, 2.0 * index + 1]]
        assert piece.new_logprobs.sampled_token_ranks.tolist() == [index]


@pytest.mark.parametrize(
    ("path", "kind", "built", "reads"),
    [
        ("/v1/chat/completions", RequestOutputKind.DELTA, True, True),
        ("/v1/responses", RequestOutputKind.DELTA, True, True),
        ("/behind/a/proxy/v1/completions", RequestOutputKind.DELTA, True, False),
        ("/v1/chat/completions", RequestOutputKind.FINAL_ONLY, True, False),
        ("/v1/chat/completions", RequestOutputKind.DELTA, False, False),
        ("/inference/v1/generate", RequestOutputKind.DELTA, False, True),
        (None, RequestOutputKind.DELTA, True, True),
    ],
)
def test_which_streams_a_parser_may_read(
    monkeypatch: pytest.MonkeyPatch, path: str | None, kind: Any, built: bool, reads: bool
) -> None:
    monkeypatch.setattr(one_token_outputs._parsers_built, "any", built)
    request, _ = make("r")
    assert request.sampling_params is not None
    request.sampling_params.output_kind = kind
    token = current_http_context.set(
        HttpRequestContext({}, None, path=path) if path is not None else None
    )
    try:
        assert parser_may_read(request) is reads
    finally:
        current_http_context.reset(token)


def test_a_server_with_a_parser_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_token_outputs._parsers_built, "any", False)
    watch_parsers()
    watch_parsers()
    assert ParserManager.get_parser() is None
    assert not one_token_outputs._parsers_built.any
    assert ParserManager.get_parser(tool_parser_name="hermes", enable_auto_tools=True) is not None
    assert one_token_outputs._parsers_built.any


async def test_a_collector_hands_out_everything_in_order_and_errors_last() -> None:
    _, queue = make("r")
    OneTokenCollector.take_over(queue)
    error = RuntimeError("the engine died")
    first, second = without_drafts(granite_case())[:2]
    for item in (first, second, error):
        queue.put(item)
    assert await queue.get() is first
    assert queue.get_nowait() is second
    with pytest.raises(RuntimeError, match="the engine died"):
        await queue.get()
    assert queue.get_nowait() is None


def test_an_error_of_ours_costs_the_splitting_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any) -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(one_token_outputs, "one_token_each", fail)
    rig = Rig()
    request, queue = make("r")
    rig.processor.add_request(request, "question", None, 0, queue)
    emit(rig.processor, "r", [5, 6, 7], step=3)
    assert [list(o.outputs[0].token_ids) for o in drain(queue)] == [[5, 6, 7]]
    monkeypatch.setattr(one_token_outputs, "parser_may_read", fail)
    request, queue = make("s")
    rig.processor.add_request(request, "question", None, 0, queue)
    assert type(queue) is RequestOutputCollector
    assert rig.errors.counts() == {"one_token_outputs": 2}
