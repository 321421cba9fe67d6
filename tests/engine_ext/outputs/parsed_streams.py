"""Answers in the formats of vLLM's parsers, and what its chat serving makes of their streams."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.outputs import RequestOutput
from vllm.parser import ParserManager
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import IterationStats

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.engine_ext.outputs.one_token_outputs import (
    OneTokenOutputs,
)
from reprise.engine_ext.outputs.replay import Replayer
from reprise.engine_ext.outputs.single_flight import SingleFlight
from reprise.tests.engine_ext.front_ends import core_request

# Answers in each parser's own format, two calls where it knows several; the answers' markers, which
# models have as tokens.
SAMPLES = json.loads((Path(__file__).parents[1] / "data/parser_samples.json").read_text())
# What these need is not to be had here: another package, or the o200k vocabulary.
NEED_MORE = {"cohere_command3", "cohere_command4", "openai", "openai_gptoss"}
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
    sampling = SamplingParams(
        output_kind=RequestOutputKind.DELTA, skip_special_tokens=False, max_tokens=4000, **params
    )
    request = core_request(name, sampling, prompt=PROMPT)
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


def granite_case() -> Case:
    form = SAMPLES["tool_parsers"]["granite-20b-fc"]
    return Case("granite-20b-fc", None, SAMPLES["tool_calls"][form])
