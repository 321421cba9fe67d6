"""Each kind of chat log gives its questions and answers."""

import json
from typing import Any

import pytest

from reprise.retrieval.chat_logs.exchanges import Exchange, exchanges_of, is_chat_row

HI = {"role": "user", "content": "hi"}
THERE = {"role": "assistant", "content": "there"}
SYSTEM = {"role": "system", "content": "be kind"}
CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "choices": [{"index": 0, "message": THERE}],
}
LITELLM = {
    "id": "1",
    "trace_id": "t",
    "call_type": "acompletion",
    "status": "success",
    "model": "m",
    "startTime": 1.5,
    "messages": [HI],
    "response": CHAT,
    "error_str": None,
}
ONE = [Exchange([HI], "", "there")]
KINDS: dict[str, tuple[dict[str, Any], list[Exchange]]] = {
    "OpenAI, for fine-tuning": ({"messages": [HI, THERE]}, ONE),
    "content in parts": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}, THERE]},
        ONE,
    ),
    "ShareGPT": (
        {
            "id": "a",
            "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "there"}],
        },
        ONE,
    ),
    "ShareGPT with a system prompt beside it": (
        {
            "system": "be kind",
            "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "there"}],
        },
        [Exchange([{"role": "system", "content": "be kind"}, HI], "", "there")],
    ),
    "LMSYS": ({"conversation_id": "a", "conversation": [HI, THERE]}, ONE),
    "request and response": ({"request": {"model": "m", "messages": [HI]}, "response": CHAT}, ONE),
    "batch file": (
        {
            "custom_id": "3",
            "body": {"messages": [HI]},
            "response": {"status_code": 200, "body": CHAT},
        },
        ONE,
    ),
    "side by side": ({"messages": [HI], "response": "there"}, ONE),
    "plain completion": (
        {"request": {"prompt": "hi"}, "response": {"choices": [{"text": "there"}]}},
        [Exchange(None, "hi", "there")],
    ),
    "Responses": (
        {
            "request": {"input": "hi", "instructions": "be kind"},
            "response": {
                "output": [
                    {"type": "reasoning", "summary": []},
                    {"type": "message", "content": [{"type": "output_text", "text": "there"}]},
                ]
            },
        },
        [Exchange([{"role": "system", "content": "be kind"}, HI], "", "there")],
    ),
    "Responses with calls of tools": (
        {
            "request": {
                "input": [
                    HI,
                    {"type": "reasoning", "summary": []},
                    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "call_id": "c", "output": "5"},
                ]
            },
            "response": {"output": [{"type": "message", "content": "there"}]},
        },
        ONE,
    ),
    "chat with calls of tools": (
        {
            "messages": [
                HI,
                {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
                {"role": "tool", "tool_call_id": "c", "content": {"sum": 5}},
                THERE,
            ]
        },
        ONE,
    ),
    "ShareGPT with calls of tools": (
        {
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "5"},
                {"from": "gpt", "value": "there"},
            ],
        },
        ONE,
    ),
    "a table with columns of several kinds": (
        {"messages": None, "conversations": [HI, THERE], "conversation": "c-17"},
        ONE,
    ),
    "LiteLLM": (LITELLM, ONE),
    "LiteLLM, what callbacks get": ({"model": "m", "standard_logging_object": LITELLM}, ONE),
    "LiteLLM, text completion": (
        {**LITELLM, "messages": "hi", "response": {"choices": [{"text": "there"}]}},
        [Exchange(None, "hi", "there")],
    ),
    "LiteLLM, spend logs as a table": (
        {
            "request_id": "1",
            "messages": "{}",
            "proxy_server_request": json.dumps({"model": "m", "messages": [HI]}),
            "response": json.dumps(CHAT),
        },
        ONE,
    ),
    "LiteLLM, messages as text": (
        {**LITELLM, "messages": json.dumps([HI]), "response": json.dumps(CHAT)},
        ONE,
    ),
    "an answer that is JSON": (
        {"messages": [HI], "response": '{"a": 1}'},
        [Exchange([HI], "", '{"a": 1}')],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind(kind: str) -> None:
    row, exchanges = KINDS[kind]
    assert is_chat_row(row)
    assert exchanges_of(row) == exchanges


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [HI]},
        {"messages": []},
        {"messages": [THERE]},  # nothing was asked
        {"messages": [HI, {"role": "assistant", "content": None, "tool_calls": [{}]}]},
        {**LITELLM, "status": "failure", "response": {}, "error_str": "500"},
        {**LITELLM, "status": "failure", "messages": "hi", "response": {}},
        {**LITELLM, "response": None},
        {**LITELLM, "messages": {}, "response": {}},
        {"request": {"messages": [HI]}, "response": {"error": {"message": "no"}}},
        {"body": {"messages": [HI]}, "response": {"status_code": 500, "body": {}}},
        {"request": {"messages": [HI]}, "response": {"choices": []}},
        {"request": {"messages": [HI]}, "response": None},
        {"custom_id": "3", "body": {"messages": [HI]}, "response": None, "error": {"code": "x"}},
        {"custom_id": "3", "body": {"messages": [HI]}, "error": {"code": "x"}},
        # No text was generated: embeddings, images, moderation.
        {**LITELLM, "call_type": "aembedding", "response": {"object": "list", "data": [{}]}},
        {"body": {"input": "hi"}, "response": {"status_code": 200, "body": {"data": [{}]}}},
        {"request": {"input": "hi"}, "response": {"id": "modr-1", "results": [{}]}},
        # Of an image the text is empty.
        {"messages": [SYSTEM, {"role": "user", "content": [{"type": "image_url"}]}, THERE]},
    ],
)
def test_rows_without_an_answer(row: dict[str, Any]) -> None:
    assert is_chat_row(row)
    assert exchanges_of(row) == []


def test_each_reply_answers_what_precedes_it() -> None:
    more = [HI, THERE, {"role": "user", "content": "bye"}, {"role": "Model", "content": "now"}]
    assert exchanges_of({"messages": more}) == [
        Exchange([HI], "", "there"),
        Exchange([HI, THERE, {"role": "user", "content": "bye"}], "", "now"),
    ]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"messages": {}, "response": CHAT}, "expected a chat in messages: it was not logged"),
        ({"messages": "hi"}, "expected a list in messages, got str"),
        ({**LITELLM, "response": [1]}, "expected text in response, got list"),
        (
            {**LITELLM, "messages": [{"role": "user", "content": "redacted-by-litellm"}]},
            "turn_off_message_logging",
        ),
        (
            {"request": {"input": 5}, "response": CHAT},
            r"expected a list in request\.input, got int",
        ),
        ({"request": {"prompt": [1, 2]}, "response": CHAT}, "expected messages, input or a prompt"),
    ],
)
def test_what_was_expected_is_said(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        exchanges_of(row)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "p", "response": "r"},
        {"prompt_token_ids": [1], "response_token_ids": [2]},
        {"prompt": "p", "response": "r", "conversation": "c-17"},
        {"prompt": "p", "response": "r", "messages": None},
        {"prompt": "p", "response": "r", "request": "r-5"},
    ],
)
def test_rows_of_ours_are_none(row: dict[str, Any]) -> None:
    assert not is_chat_row(row)
