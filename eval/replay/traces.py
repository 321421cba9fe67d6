"""Trace files: recorded requests in time order, as JSON Lines; chat logs are traces too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from reprise.retrieval.chat_logs.exchanges import Exchange, exchanges_of, is_chat_row
from reprise.retrieval.chat_logs.log_rows import LogError, read_log
from reprise.retrieval.query.turns import query_of_messages, query_text

_REQUIRED = ("prompt", "response")
_OPTIONAL_TEXT = ("id", "cached", "query", "group")
_OPTIONAL_FLAGS = {"warm", "rendered"}


class TraceError(ValueError):
    """A trace that cannot be used; the message is one line that names the file and the line."""


class TraceRow(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a trace; fields of a file beside these are ignored."""

    prompt: str
    """What the user asked."""
    response: str
    """What the model answered: the recorded target output."""
    id: str | None = None
    """A label of the row."""
    cached: str | None = None
    """An older or sibling model's answer, put into the cache before the replay."""
    warm: bool = False
    """The row only fills the cache; it is not replayed."""
    query: str | None = None
    """The part of the prompt to embed, where it is not the whole prompt."""
    group: str | None = None
    """Topic label."""
    messages: list[dict[str, str]] | None = None
    """The chat that the answer replies to, of which `prompt` is the text."""
    rendered: bool = False
    """Whether `prompt` has been through the model's chat template already."""

    @property
    def query_text(self) -> str:
        """What retrieval embeds for this row."""
        return self.query if self.query is not None else self.prompt


def load_trace(path: str | Path, *, on_empty: Callable[[], None] = lambda: None) -> list[TraceRow]:
    """Read a trace, or a chat log of any kind that `reprise cache import` reads.

    Args:
        path: see `read_log`.
        on_empty: called for each row without a question or an answer; it is left out.

    Raises:
        TraceError: one line that names file and line number, for a file that cannot be read, a row
            with a missing or mistyped field, or a trace in which nothing is left to replay.
    """
    path = Path(path)
    rows: list[TraceRow] = []
    try:
        for number, fields in read_log(path):
            try:
                found = _chat_rows(fields) if is_chat_row(fields) else _rows(fields)
            except ValueError as error:
                raise TraceError(f"{path}, line {number}: {error}") from None
            if not found:
                on_empty()
            rows += found
    except LogError as error:
        raise TraceError(str(error)) from None
    if not rows:
        raise TraceError(f"{path}: the trace is empty")
    if all(row.warm for row in rows):
        raise TraceError(f"{path}: every row is warm, so nothing is left to replay")
    return rows


def save_trace(path: str | Path, rows: Iterable[TraceRow]) -> None:
    """Write rows as a trace file."""
    encoder = msgspec.json.Encoder()
    Path(path).write_bytes(b"".join(encoder.encode(row) + b"\n" for row in rows))


def limit_rows(rows: Sequence[TraceRow], limit: int | None) -> list[TraceRow]:
    """All warm rows, and the first `limit` others."""
    kept, timed = [], 0
    for row in rows:
        timed += not row.warm
        if row.warm or limit is None or timed <= limit:
            kept.append(row)
    return kept


def _rows(fields: Mapping[str, Any]) -> list[TraceRow]:
    """Return the row that has the fields of a trace; none without a question or an answer."""
    for name in _REQUIRED:
        if name not in fields:
            hint = "; it has token ids, not text" if f"{name}_token_ids" in fields else ""
            raise ValueError(f"the row has no {name!r}{hint}")
        if not isinstance(fields[name], str | None):
            raise ValueError(f"{name!r} must be a string")
    texts = {name: fields[name] for name in _REQUIRED}
    return [TraceRow(**texts, **_labels(fields))] if all(texts.values()) else []


def _chat_rows(fields: Mapping[str, Any]) -> list[TraceRow]:
    """Return a row for each answer in a row of a chat log; what a trace may add to it counts."""
    labels = _labels(fields)
    exchanges = exchanges_of(fields)
    if len(exchanges) > 1 and labels.keys() & {"cached", "query"}:
        raise ValueError("'cached' and 'query' are of one answer; the chat has several")
    return [_chat_row(exchange, labels) for exchange in exchanges]


def _chat_row(exchange: Exchange, labels: Mapping[str, Any]) -> TraceRow:
    if exchange.messages is None:
        prompt, query = exchange.prompt, query_text(exchange.prompt)
    else:
        prompt, query = _plain(exchange.messages), query_of_messages(exchange.messages)
    made = {
        "prompt": prompt,
        "response": exchange.response,
        "query": query if query != prompt else None,
        "messages": exchange.messages,
        "rendered": exchange.rendered,
    }
    return TraceRow(**{**made, **labels})


def _plain(messages: Sequence[Mapping[str, str]]) -> str:
    """Return a chat as text; a single question as it is, as in a trace."""
    if [message["role"] for message in messages] == ["user"]:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _labels(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the optional fields of a trace that a row has.

    Raises:
        ValueError: one is of another type.
    """
    labels = {name: fields[name] for name in _OPTIONAL_TEXT if fields.get(name) is not None}
    if isinstance(labels.get("id"), int):
        labels["id"] = str(labels["id"])
    for name, value in labels.items():
        if not isinstance(value, str):
            raise ValueError(f"{name!r} must be a string")
    for name in _OPTIONAL_FLAGS & fields.keys():
        if not isinstance(fields[name], bool):
            raise ValueError(f"{name!r} must be true or false")
        labels[name] = fields[name]
    return labels
