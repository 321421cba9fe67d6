"""Trace files: recorded requests, one JSON object a line, in time order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

_REQUIRED = ("prompt", "response")
_OPTIONAL_TEXT = ("id", "cached", "query", "group")


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

    @property
    def query_text(self) -> str:
        """What retrieval embeds for this row."""
        return self.query if self.query is not None else self.prompt


def load_trace(path: str | Path) -> list[TraceRow]:
    """Read a trace file, strictly.

    Blank lines are skipped. Raises TraceError, in one line that names file and line number, for a
    file that cannot be read, a line that is not a JSON object, a missing or mistyped field, or a
    trace in which nothing is left to replay.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise TraceError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    # Not splitlines(): that also breaks at U+2028 and its like, which JSON allows inside strings.
    rows = [
        _parse_row(line, where=f"{path}:{number}")
        for number, line in enumerate(text.split("\n"), start=1)
        if line.strip()
    ]
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


def _parse_row(line: str, *, where: str) -> TraceRow:
    try:
        fields: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise TraceError(f"{where}: not JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise TraceError(f"{where}: not usable JSON: nested too deeply") from None
    if not isinstance(fields, dict):
        raise TraceError(f"{where}: expected a JSON object, got {type(fields).__name__}")
    for name in _REQUIRED:
        if name not in fields:
            raise TraceError(f"{where}: the row has no {name!r}")
        if not isinstance(fields[name], str) or not fields[name]:
            raise TraceError(f"{where}: {name!r} must be a non-empty string")
    for name in _OPTIONAL_TEXT:
        if not isinstance(fields.get(name), str | None):
            raise TraceError(f"{where}: {name!r} must be a string")
    warm = fields.get("warm", False)
    if not isinstance(warm, bool):
        raise TraceError(f"{where}: 'warm' must be true or false")
    return TraceRow(
        warm=warm, **{name: fields[name] for name in _REQUIRED + _OPTIONAL_TEXT if name in fields}
    )
