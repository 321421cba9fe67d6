"""Streams that vLLM's parsers read, drafted, replayed and followed, against one token a delta."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.outputs import RequestOutput
from vllm.parser import ParserManager
from vllm.reasoning import ReasoningParserManager
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import IterationStats
from vllm.v1.outputs import LogprobsLists

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.outputs import one_token_outputs
from reprise.engine_ext.outputs.one_token_outputs import (
    OneTokenCollector,
    OneTokenOutputs,
    one_token_each,
    parser_may_read,
    watch_parsers,
)
from reprise.engine_ext.outputs.replay import Ending, Replayer
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.engine_ext.request.http_context import HttpRequestContext, current_http_context

# Answers in each parser's own format, two calls where it knows several; the answers' markers, which
# models have as tokens.
SAMPLES = json.loads((Path(__file__).parents[1] / "data/parser_samples.json").read_text())
# What these need is not to be had here: another package, or the o200k vocabulary.
NEED_MORE = {"cohere_command3", "cohere_command4", "openai", "openai_gptoss"}
# They know one call an answer, or none in a stream.
FEWER_CALLS = {"internlm": 1, "gigachat3": 1, "phi4_mini_json": 0}
# (tool parser, reasoning parser): what vLLM 0.32 streams with one token a delta is not what it says
# in a reply that is no stream, on these samples.
VLLM_STREAMS_OTHERWISE = {
    ("hunyuan_a13b", None),
    ("minicpm5", None),
    ("phi4_mini_json", None),
    (None, "granite"),
    (None, "hunyuan_a13b"),
    (None, "inkling"),
    ("granite", "granite"),
    ("hunyuan_a13b", "hunyuan_a13b"),
    ("olmo3", "olmo3"),
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "d",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        },
    }
    for name in "fg"
]
THINKING = {"thinking": True, "enable_thinking": True, "reasoning_effort": "high"}


def marker_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, and one for each marker."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # The last ones are never made of text: a parser wants to see them in the vocabulary.
    symbols = ["<eos>", *alphabet, "Ġ</", "</", "think"]
    tokenizer = Tokenizer(
        models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=[])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", bos_token="<eos>")
    fast.add_tokens(SAMPLES["markers"])
    call = {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json"}
    fast.response_template = {
        "start_anchor": "question",
        "fields": {
            "thinking": {"open": "<think>", "close": "</think>"},
            "tool_calls": {**call, "transform": {"type": "function", "function": "{content}"}},
            "content": {},
        },
    }
    return fast


TOKENIZER = marker_tokenizer()
PROMPT = TOKENIZER.encode("question")


class Case(NamedTuple):
    """An answer and the parsers that read it."""

    tool_parser: str | None
    reasoning_parser: str | None
    text: str

    @property
    def token_ids(self) -> list[int]:
        return list(TOKENIZER.encode(self.text, add_special_tokens=False))


class Joined(NamedTuple):
    """What a client makes of a stream."""

    content: str
    reasoning: str
    calls: dict[int, tuple[str, str, int]]
    """By index: name, arguments, number of ids."""


def cases() -> Iterator[Any]:
    tools, reasonings = SAMPLES["tool_parsers"], SAMPLES["reasoning_parsers"]
    for name, form in tools.items():
        yield pytest.param(Case(name, None, SAMPLES["tool_calls"][form]), id=f"tools-{name}")
    for name, form in reasonings.items():
        yield pytest.param(Case(None, name, SAMPLES["reasoning"][form]), id=f"reasoning-{name}")
    for name in sorted(tools.keys() & reasonings.keys()):
        text = SAMPLES["reasoning"][reasonings[name]] + SAMPLES["tool_calls"][tools[name]]
        yield pytest.param(Case(name, name, text), id=f"both-{name}")


def parser_of(case: Case) -> tuple[Any, ChatCompletionRequest]:
    """As vLLM's chat serving builds it for a request."""
    parser_class = ParserManager.get_parser(
        tool_parser_name=case.tool_parser,
        reasoning_parser_name=case.reasoning_parser,
        enable_auto_tools=case.tool_parser is not None,
        tokenizer=TOKENIZER,
    )
    assert parser_class is not None
    tools = {"tools": TOOLS, "tool_choice": "auto"} if case.tool_parser else {}
    request = ChatCompletionRequest(
        model="m",
        messages=[{"role": "user", "content": "q"}],
        stream=True,
        chat_template_kwargs=THINKING,
        **tools,
    )
    return parser_class(TOKENIZER, request.tools, chat_template_kwargs=THINKING), request


def read(case: Case, outputs: list[RequestOutput]) -> Joined:
    """What vLLM's chat serving makes of outputs, joined as a client joins it."""
    parser, request = parser_of(case)
    content = reasoning = ""
    calls: dict[int, tuple[str, str, int]] = {}
    for output in outputs:
        completion = output.outputs[0]
        delta = parser.parse_delta(
            completion.text,
            list(completion.token_ids),
            request,
            PROMPT,
            finished=completion.finish_reason is not None,
        )
        if delta is None:
            continue
        content += delta.content or ""
        reasoning += delta.reasoning or ""
        for call in delta.tool_calls or []:
            name, arguments, num_ids = calls.get(call.index, ("", "", 0))
            function = call.function
            calls[call.index] = (
                name + (function.name or "" if function else ""),
                arguments + (function.arguments or "" if function else ""),
                num_ids + bool(call.id),
            )
    return Joined(content, reasoning, calls)


def make(name: str, **params: Any) -> tuple[EngineCoreRequest, RequestOutputCollector]:
    request = EngineCoreRequest(
        request_id=name,
        external_req_id=name,
        prompt_token_ids=PROMPT,
        mm_features=None,
        sampling_params=SamplingParams(
            output_kind=RequestOutputKind.DELTA,
            skip_special_tokens=False,
            max_tokens=4000,
            **params,
        ),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return request, RequestOutputCollector(RequestOutputKind.DELTA, name)


class Rig:
    """An output processor with everything of ours that touches streams."""

    def __init__(self) -> None:
        self.processor = OutputProcessor(TOKENIZER, log_stats=True)
        self.errors = ErrorCounter()
        OneTokenOutputs(self.processor, errors=self.errors)
        self.replayer = Replayer(self.processor, chunk_tokens=16, errors=self.errors)
        self.flights = SingleFlight(self.processor, self.replayer, errors=self.errors)

    def on_first_token(self) -> None: ...

    def on_finish(self, finished: Any) -> None: ...

    def on_end(self) -> None: ...


def emit(processor: OutputProcessor, name: str, token_ids: list[int], *, step: int) -> None:
    """The engine's outputs for a request, `step` tokens each."""
    for start in range(0, len(token_ids), step):
        is_last = start + step >= len(token_ids)
        output = EngineCoreOutput(
            request_id=name,
            new_token_ids=token_ids[start : start + step],
            finish_reason=FinishReason.LENGTH if is_last else None,
        )
        processor.process_outputs([output], 1.0, IterationStats(), "w")


def drain(queue: RequestOutputCollector) -> list[RequestOutput]:
    outputs = []
    while (output := queue.get_nowait()) is not None:
        outputs.append(output)
    return outputs


def without_drafts(case: Case) -> list[RequestOutput]:
    """vLLM alone, one token a step, each fetched at once."""
    processor = OutputProcessor(TOKENIZER, log_stats=True)
    request, queue = make("r")
    processor.add_request(request, "question", None, 0, queue)
    outputs = []
    token_ids = case.token_ids
    for index, token_id in enumerate(token_ids):
        is_last = index == len(token_ids) - 1
        output = EngineCoreOutput(
            request_id="r",
            new_token_ids=[token_id],
            finish_reason=FinishReason.LENGTH if is_last else None,
        )
        processor.process_outputs([output], 1.0, IterationStats(), "w")
        outputs += drain(queue)
    return outputs


@pytest.fixture(autouse=True)
def _a_parser_was_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_token_outputs._parsers_built, "any", True)


def test_every_parser_of_vllm_has_a_sample() -> None:
    assert set(ToolParserManager.list_registered()) == SAMPLES["tool_parsers"].keys() | (
        NEED_MORE - {"openai_gptoss"}
    )
    assert set(ReasoningParserManager.list_registered()) == SAMPLES["reasoning_parsers"].keys() | (
        NEED_MORE - {"openai"}
    )


@pytest.mark.parametrize("case", cases())
def test_without_drafts_a_stream_adds_up_to_the_whole_reply(case: Case) -> None:
    """What the next test compares with is right, but where vLLM itself streams otherwise."""
    parser, request = parser_of(case)
    parser.set_prompt_token_ids(PROMPT)
    reasoning, content, calls = parser.parse(
        case.text,
        request,
        enable_auto_tools=case.tool_parser is not None,
        model_output_token_ids=case.token_ids,
    )
    streamed = read(case, without_drafts(case))
    whole = [
        (reasoning or "").strip(),
        (content or "").strip(),
        [(call.name, json.loads(call.arguments)) for call in calls or ()],
    ]
    added_up = [
        streamed.reasoning.strip(),
        streamed.content.strip(),
        [(name, json.loads(arguments)) for name, arguments, _ in streamed.calls.values()],
    ]
    names = (case.tool_parser, case.reasoning_parser)
    assert (added_up == whole) == (names not in VLLM_STREAMS_OTHERWISE)


@pytest.mark.parametrize("case", cases())
async def test_a_parser_reads_what_it_would_read_without_drafts(case: Case) -> None:
    truth = read(case, without_drafts(case))
    if case.tool_parser and not case.reasoning_parser:
        named = [call for call in truth.calls.values() if call[0] in ("f", "g") and call[2] == 1]
        assert len(named) == FEWER_CALLS.get(case.tool_parser, 2)

    rig = Rig()
    request, drafted = make("drafted")
    rig.flights.lead(b"key", "drafted", watcher=rig)
    rig.processor.add_request(request, "question", None, 0, drafted)
    half = len(case.token_ids) // 2
    first = EngineCoreOutput(request_id="drafted", new_token_ids=case.token_ids[:half])
    rig.processor.process_outputs([first], 1.0, IterationStats(), "w")
    request, followed = make("followed")
    assert rig.flights.join(b"key", request, "question", followed)
    emit(rig.processor, "drafted", case.token_ids[half:], step=17)

    request, replayed = make("replayed")
    ending = Ending(FinishReason.LENGTH, None)
    rig.replayer.replay(request, "question", replayed, case.token_ids, ending, "w")
    for task in list(rig.replayer._tasks):
        await task
    # The slowest of clients: nothing was fetched before all of it was there.
    for queue in (drafted, followed, replayed):
        assert read(case, drain(queue)) == truth
    assert rig.errors.counts() == {}


def granite_case() -> Case:
    form = SAMPLES["tool_parsers"]["granite-20b-fc"]
    return Case("granite-20b-fc", None, SAMPLES["tool_calls"][form])


def test_without_this_a_slow_client_loses_calls() -> None:
    """What the tests above are for: vLLM's own collector joins what was not fetched."""
    case = granite_case()
    processor = OutputProcessor(TOKENIZER, log_stats=True)
    request, queue = make("r")
    processor.add_request(request, "question", None, 0, queue)
    emit(processor, "r", case.token_ids, step=17)
    assert read(case, drain(queue)) != read(case, without_drafts(case))


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
