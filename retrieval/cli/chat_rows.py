"""Chat logs as other programs write them: from one row to its questions and answers.

    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}
    {"conversations": [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]}
    {"request": {"messages": [...]}, "response": {"choices": [{"message": {"content": "..."}}]}}

Each reply of an assistant is an answer to all that precedes it. Requests for plain completions have
`prompt`, and their choices `text`. What a log adds around a body (`body`, as batch files have it)
is looked through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

Message = dict[str, str]
_ROLES = {
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant"},
    **{"bard": "assistant", "model": "assistant", "developer": "system"},
}


class Exchange(NamedTuple):
    """One answer and what it answers."""

    messages: list[Message] | None
    """The chat before it; None for a plain completion."""
    prompt: str
    """The prompt of a plain completion."""
    response: str


def is_chat_row(row: Mapping[str, Any]) -> bool:
    """Return whether a row is one of these, and not one of ours."""
    return (
        "messages" in row
        or "conversations" in row
        or (isinstance(row.get("response"), Mapping) and bool(row.keys() & {"request", "body"}))
    )


def exchanges_of(row: Mapping[str, Any]) -> list[Exchange]:
    """Return the answers in a row; none where nothing was answered, as after an error.

    Raises:
        ValueError: The row is not what it looks like; says what was expected.
    """
    if "messages" in row or "conversations" in row:
        key = "messages" if "messages" in row else "conversations"
        messages = _messages(row[key], key)
        reply = row.get("response", "")
        reply = _reply(reply) if isinstance(reply, Mapping) else _text(reply, "response")
        if reply:  # a log of requests whose fields lie side by side
            return [Exchange(messages, "", reply)]
        return [
            Exchange(messages[:at], "", message["content"])
            for at, message in enumerate(messages)
            if at and message["role"] == "assistant" and message["content"]
        ]
    request = _body(row.get("request", row.get("body")), "request")
    response = _reply(row["response"])
    if not response:
        return []
    if "messages" in request:
        return [Exchange(_messages(request["messages"], "request.messages"), "", response)]
    if isinstance(request.get("prompt"), str):
        return [Exchange(None, request["prompt"], response)]
    raise ValueError("expected messages or a prompt of text in the request")


def _body(value: Any, where: str) -> Mapping[str, Any]:
    body = value.get("body", value) if isinstance(value, Mapping) else value
    if not isinstance(body, Mapping):
        raise ValueError(f"expected an object in {where}, got {type(body).__name__}")
    return body


def _reply(response: Any) -> str:
    """Return the text of a response's first choice; empty if it failed or holds none."""
    body = _body(response, "response")
    choices = body.get("choices")
    if choices is None and (body.get("error") or response.get("status_code", 200) != 200):
        return ""
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
        if not isinstance(role, str):
            raise ValueError(f"expected role and content (or from and value) in {place}")
        text = _text(each.get("content", each.get("value")), place)
        messages.append({"role": _ROLES.get(role.lower(), role.lower()), "content": text})
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
