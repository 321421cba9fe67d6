"""Streamed tool calls on a real server whose parser takes one step a delta."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

# Defined in this folder's conftest.py, which pytest imports under a name of its own.
Reply = Any
Server = Any

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

CALL = '<function_call> {"name": "%s", "arguments": %s}'
ARGUMENTS = '{"x": %d}'
TEXTS = {
    "three short": " ".join(CALL % (name, "{}") for name in "fgf"),
    "two": " ".join(CALL % (name, ARGUMENTS % (i + 1)) for i, name in enumerate("fg")),
    "two long": " ".join(CALL % (name, ARGUMENTS % (100 * i + 100)) for i, name in enumerate("fg")),
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
AS_PLAIN_VLLM = {"x_reprise_cache": "off", "x_reprise_drafts": "off"}


@pytest.fixture(scope="module")
def server(demo_model: Path, server_builder: Callable[..., Server]) -> Iterator[Server]:
    built = server_builder(
        demo_model,
        "--tool-call-parser",
        "granite-20b-fc",
        # Drafts, and many, whatever they cost here.
        "--additional-config",
        '{"reprise": {"drafts": {"verify_cost": 0.02}}}',
        with_reprise=True,
    )
    try:
        built.wait()
        yield built
    finally:
        built.stop()


def ask(server: Server, text: str, **headers: str) -> Reply:
    return server.chat(
        f"Repeat this text exactly, three times: {text} {text}",
        stream=True,
        stream_options={"include_usage": True},
        tools=TOOLS,
        max_tokens=400,
        structured_outputs={"choice": [text]},
        headers=headers,
    )


def told(reply: Reply) -> tuple[Any, Any, Any]:
    """Ending, calls by index (name, arguments, number of ids) and tokens of a stream."""
    ending = usage = None
    calls: dict[int, tuple[str, str, int]] = {}
    for chunk in reply.chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            ending = choice.get("finish_reason") or ending
            for call in choice["delta"].get("tool_calls") or ():
                name, arguments, num_ids = calls.get(call["index"], ("", "", 0))
                function = call.get("function") or {}
                calls[call["index"]] = (
                    name + (function.get("name") or ""),
                    arguments + (function.get("arguments") or ""),
                    num_ids + bool(call.get("id")),
                )
    assert usage is not None
    return ending, calls, usage["completion_tokens"]


@pytest.mark.parametrize("name", TEXTS)
def test_no_call_is_lost_however_it_is_answered(server: Server, name: str) -> None:
    text = TEXTS[name]
    expected = told(ask(server, text, **AS_PLAIN_VLLM))
    assert expected[0] == "tool_calls"
    assert [call[0] for call in expected[1].values()] == list("fgf" if "three" in name else "fg")
    first = ask(server, text)
    assert first.generated
    assert told(first) == expected
    again = ask(server, text)
    assert again.cache == "exact"
    assert told(again) == expected
    # By now the answer is drafted from, whole.
    for _ in range(3):
        anew = ask(server, text, x_reprise_cache="refresh", x_reprise_info="on")
        assert anew.generated
        assert told(anew) == expected
    together = " ".join([text, CALL % ("g", "{}")])
    expected = told(ask(server, together, **AS_PLAIN_VLLM))
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: ask(server, together), range(8)))
    assert [told(reply) for reply in replies] == [expected] * 8


def test_drafts_were_accepted_on_the_way(server: Server) -> None:
    (worker,) = server.send("/reprise/stats").json["workers"]
    assert worker["provider"]["accepted"] > 20
    assert server.send("/reprise/stats").json["front_end"]["errors"] == {}
