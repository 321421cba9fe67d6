"""Streams that vLLM's parsers read, drafted, replayed and followed, against one token a delta."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from vllm.reasoning import ReasoningParserManager
from vllm.tool_parsers import ToolParserManager
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import IterationStats

from reprise.engine_ext.outputs import one_token_outputs
from reprise.engine_ext.outputs.replay import Ending
from reprise.tests.engine_ext.outputs.parsed_streams import (
    NEED_MORE,
    PROMPT,
    SAMPLES,
    TOKENIZER,
    Case,
    Rig,
    drain,
    emit,
    granite_case,
    make,
    parser_of,
    read,
    without_drafts,
)

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


def cases() -> Iterator[Any]:
    tools, reasonings = SAMPLES["tool_parsers"], SAMPLES["reasoning_parsers"]
    for name, form in tools.items():
        yield pytest.param(Case(name, None, SAMPLES["tool_calls"][form]), id=f"tools-{name}")
    for name, form in reasonings.items():
        yield pytest.param(Case(None, name, SAMPLES["reasoning"][form]), id=f"reasoning-{name}")
    for name in sorted(tools.keys() & reasonings.keys()):
        text = SAMPLES["reasoning"][reasonings[name]] + SAMPLES["tool_calls"][tools[name]]
        yield pytest.param(Case(name, name, text), id=f"both-{name}")


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
    for task in list(rig.replayer.turns._tasks):
        await task
    # The slowest of clients: nothing was fetched before all of it was there.
    for queue in (drafted, followed, replayed):
        assert read(case, drain(queue)) == truth
    assert rig.errors.counts() == {}


def test_without_this_a_slow_client_loses_calls() -> None:
    """What the tests above are for: vLLM's own collector joins what was not fetched."""
    case = granite_case()
    processor = OutputProcessor(TOKENIZER, log_stats=True)
    request, queue = make("r")
    processor.add_request(request, "question", None, 0, queue)
    emit(processor, "r", case.token_ids, step=17)
    assert read(case, drain(queue)) != read(case, without_drafts(case))
