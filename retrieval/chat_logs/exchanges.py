"""Chat logs as other programs write them: from one row to its questions and answers.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"request": {"messages": [...]}, "response": {"choices": [{"message": {"content": "..."}}]}}
    {"messages": [...], "response": {"choices": [...]}, "status": "success", "call_type": "..."}

Each reply of an assistant is an answer to all that precedes it. Requests for plain completions have
`prompt`, and their choices `text`; OpenAI's Responses have `input` and `output`. What a log adds
around a body (`body` in batch files, `standard_logging_object` of LiteLLM) is looked through.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, str]
_CHATS = ("messages", "conversations", "conversation")
_ROLES = {
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"},
    **{"bard": "assistant", "model": "assistant", "developer": "system"},
}
# What tools were called with and said, in any of these formats.
_TOOLS = {"tool", "function", "observation", "function_call", "function_response"}
_LITELLM_PAYLOAD = "standard_logging_object"
# What LiteLLM writes where it is not to log texts: no question and no answer.
_REDACTED = "redacted-by-litellm"


class Exchange(NamedTuple):
    """One answer and what it answers."""

    messages: list[Message] | None
    """The chat before it; None for a plain completion."""
    prompt: str
    """The prompt of a plain completion."""
    response: str
    rendered: bool = False
    """Whether the prompt has been through the model's chat template."""


def is_chat_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row is one of these, and not one of ours."""
    if _chat_key(row) is not None or _LITELLM_PAYLOAD in row:
        return True
    requests = [row[key] for key in ("request", "body") if key in row]
    if isinstance(row.get("response"), Mapping):
        return bool(requests)
    # One that failed may have an error in its place.
    has_failed = row.get("response") is None and bool(row.keys() & {"response", "error"})
    return has_failed and any(isinstance(each, Mapping) for each in requests)


def _chat_key(row: Mapping[str, Any]) -> str | None:
    """Return the field of a row that holds a chat; None: none does."""
    keys = [key for key in _CHATS if key in row]
    chats = [key for key in keys if row[key] and isinstance(_parsed(row[key]), list)]
    if chats:
        return chats[0]  # others may be columns that this row leaves empty
    # Beside a prompt and a response of ours it names a conversation, or is such a column.
    return None if not keys or row.keys() >= {"prompt", "response"} else keys[0]


def exchanges_of(row: Mapping[str, Any]) -> list[Exchange]:
    """Return the answers in a row; none where nothing was asked or answered, as after an error.

    Raises:
        ValueError: The row is not what it looks like; says what was expected.
    """
    if isinstance(row.get(_LITELLM_PAYLOAD), Mapping):
        row = row[_LITELLM_PAYLOAD]
    key = _chat_key(row)
    exchanges = _of_request(row) if key is None else _of_chat(row, key)
    for each in exchanges:
        asked = [message["content"] for message in each.messages or ()]
        if _REDACTED in (*asked, each.prompt, each.response):
            raise ValueError("LiteLLM was to leave the texts out (turn_off_message_logging)")
    return [each for each in exchanges if _asks(each)]


def left_out_in_words(count: int) -> str:
    """Say how many rows hold nothing to use."""
    return f"{count} {'row' if count == 1 else 'rows'} without a question or an answer left out"


def _asks(exchange: Exchange) -> bool:
    messages = exchange.messages or []
    # Of a question that is but an image the system prompt is left.
    asked = [each for each in messages if each["role"] not in ("system", "assistant")] or messages
    return bool(exchange.prompt) or any(each["content"] for each in asked)


def _of_chat(row: Mapping[str, Any], key: str) -> list[Exchange]:
    """Return the answers of a row that has a chat, and perhaps the response to it beside it."""
    response = _parsed(row["response"]) if "response" in row else None
    reply = _reply(response) if isinstance(response, Mapping) else _text(response, "response")
    asked = row[key]
    if "response" in row:
        asked = _parsed(asked) or _of_proxy(row.get("proxy_server_request"))
        if not asked and not reply:
            return []
        if not asked:
            raise ValueError(f"expected a chat in {key}: it was not logged")
        if isinstance(asked, str):
            return [Exchange(None, asked, reply)] if reply else []
    messages = _messages(asked, key)
    system = row.get("system")
    if isinstance(system, str) and system and all(each["role"] != "system" for each in messages):
        messages.insert(0, {"role": "system", "content": system})
    if reply:  # a log of requests whose fields lie side by side
        return [Exchange(messages, "", reply)]
    return [
        Exchange(messages[:at], "", message["content"])
        for at, message in enumerate(messages)
        if at and message["role"] == "assistant" and message["content"]
    ]


def _of_proxy(request: Any) -> Any:
    """Return the messages of a request as LiteLLM's proxy received it, if they were logged."""
    request = _parsed(request)
    if isinstance(request, Mapping):
        request = _parsed(request.get("body", request))
    return request.get("messages") if isinstance(request, Mapping) else None


def _of_request(row: Mapping[str, Any]) -> list[Exchange]:
    """Return the answer of a row that has a request and its response."""
    request = _body(row.get("request", row.get("body")), "request")
    response = "" if row.get("response") is None else _reply(row["response"])
    if not response:
        return []
    if "messages" in request:
        return [Exchange(_messages(request["messages"], "request.messages"), "", response)]
    if "input" in request:
        asked = request["input"]
        if isinstance(asked, str):
            asked = [{"role": "user", "content": asked}]
        messages = _messages(asked, "request.input")
        if isinstance(request.get("instructions"), str):
            messages.insert(0, {"role": "system", "content": request["instructions"]})
        return [Exchange(messages, "", response)]
    if isinstance(request.get("prompt"), str):
        rendered = request.get("rendered") is True
        return [Exchange(None, request["prompt"], response, rendered)]
    raise ValueError("expected messages, input or a prompt of text in the request")


def _parsed(value: Any) -> Any:
    """Return what a text holds, if it is JSON of an object or a list: logs in tables have those."""
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        if isinstance(parsed, Mapping) and (not parsed or parsed.keys() & _OF_BODIES):
            return parsed
        if isinstance(parsed, list) and all(isinstance(each, Mapping) for each in parsed):
            return parsed
    return value


# An answer may be JSON itself: it is a body only if it has what bodies have.
_OF_BODIES = {"choices", "output", "messages", "body", "error"}
# What responses have in which no text is generated: of embeddings, images, moderation, reranking.
_OF_OTHER_WORK = {"data", "results"}


def _body(value: Any, where: str) -> Mapping[str, Any]:
    body = value.get("body", value) if isinstance(value, Mapping) else value
    if not isinstance(body, Mapping):
        raise ValueError(f"expected an object in {where}, got {type(body).__name__}")
    return body


def _reply(response: Any) -> str:
    """Return the text of a response's first choice; empty if it failed or holds none."""
    body = _body(response, "response")
    choices = body.get("choices")
    failed = body.get("error") or response.get("status_code", 200) != 200
    if choices is None and (failed or not body):
        return ""
    output = body.get("output")
    if choices is None and output is None and body.keys() & _OF_OTHER_WORK:
        return ""
    if isinstance(output, list) and choices is None:
        texts = [
            _text(each.get("content"), "response.output")
            for each in output
            if isinstance(each, Mapping) and each.get("type") == "message"
        ]
        return "\n".join(texts)
    if not isinstance(choices, list) or not all(isinstance(each, Mapping) for each in choices):
        raise ValueError("expected a list of choices in the response")
    if not choices:
        return ""
    message = choices[0].get("message")
    if isinstance(message, Mapping):
        return _text(message.get("content"), "response.choices[0].message.content")
    return _text(choices[0].get("text"), "response.choices[0].text")


def _messages(value: Any, where: str) -> list[Message]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list in {where}, got {type(value).__name__}")
    messages = []
    for number, each in enumerate(value):
        place = f"{where}[{number}]"
        if not isinstance(each, Mapping):
            raise ValueError(f"expected an object in {place}, got {type(each).__name__}")
        role = each.get("role", each.get("from"))
        if role is None and isinstance(each.get("type"), str):
            continue  # in Responses, the call of a tool, what it said, or reasoning
        if not isinstance(role, str):
            raise ValueError(f"expected role and content (or from and value) in {place}")
        role = _ROLES.get(role.lower(), role.lower())
        if role in _TOOLS:
            continue
        text = _text(each.get("content", each.get("value")), place)
        if text or not (each.get("tool_calls") or each.get("function_call")):
            messages.append({"role": role, "content": text})
    return messages


def _text(content: Any, where: str) -> str:
    """Return the text of a message: a string, parts of which some are text, or nothing."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        return "\n".join(p["text"] for p in content if isinstance(p.get("text"), str))
    raise ValueError(f"expected text in {where}, got {type(content).__name__}")
