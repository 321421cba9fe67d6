"""JSON as other programs write it: what is wrong with it, said in a few words.

NaN and the infinities, which some exporters write for what is missing, count as null.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec

_BLANK = " \t\r\n"


class JsonError(ValueError):
    """Text that is no JSON.

    Args:
        message: What is wrong.
        position: Where in the text, in characters.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


def decode(text: str) -> Any:
    """Return the one value of a text.

    Raises:
        JsonError: It is none, or more than one.
    """
    try:
        return msgspec.json.decode(text)  # strict, and several times faster
    except (msgspec.MsgspecError, ValueError, RecursionError):
        value, end = _decode_at(text, 0)
    rest = text[end:].strip(_BLANK)
    if rest == ",":
        raise JsonError("a comma after the row, which JSON Lines does not have", end)
    if rest:
        raise JsonError(f"more text after the row: {_shown(rest)}", end)
    return value


def decode_all(text: str) -> Iterator[tuple[int, Any]]:
    """Yield (position, value) for the values of a text: one after another, or those of an array.

    Raises:
        JsonError: Something else is there.
    """
    at = _next(text, 0)
    is_array = text[at : at + 1] == "["
    if is_array:
        at = _next(text, at + 1)
        if text[at : at + 1] == "]":
            _expect_end(text, at + 1)
            return
    while at < len(text):
        value, end = _decode_at(text, at)
        yield at, value
        at = _next(text, end)
        if is_array:
            separator = text[at : at + 1]
            if separator == "]":
                _expect_end(text, at + 1)
                return
            if separator != ",":
                raise JsonError("a comma or the closing ] of the array is missing", end)
            at = _next(text, at + 1)
            if text[at : at + 1] == "]":
                raise JsonError("a comma before the closing ]", at)
        elif text[at : at + 1] == ",":
            raise JsonError("a comma after the row, outside of an array", at)
    if is_array:
        raise JsonError("the closing ] of the array is missing", len(text.rstrip(_BLANK)) - 1)


def _decode_at(text: str, start: int) -> tuple[Any, int]:
    """Return a value and where it ends."""
    at = _next(text, start)
    try:
        value, end = _DECODER.raw_decode(text, at)
        if text.find("\\u", at, end) >= 0:  # else no half of a character can have come in
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _problem(text, error) from None
    except UnicodeEncodeError:
        raise JsonError(
            r"half of a character outside of the basic plane (a \ud800 to \udfff alone)", at
        ) from None
    except RecursionError:
        raise JsonError("nested too deeply", at) from None
    except ValueError as error:  # a number of thousands of digits
        raise JsonError(str(error), at) from None
    return value, end


def _problem(text: str, error: json.JSONDecodeError) -> JsonError:
    before = text[: error.pos].rstrip(_BLANK)
    here = text[error.pos :].lstrip(_BLANK)[:1]
    # Where Python says that it is depends on its version: at the comma or behind it.
    if here == "," and (after := text[error.pos + 1 :].lstrip(_BLANK)[:1]) in ("}", "]"):
        return JsonError(f"a comma before the closing {after}", error.pos)
    if before.endswith(",") and here in ("}", "]"):
        return JsonError(f"a comma before the closing {here}", error.pos)
    if not here:
        return JsonError("not JSON: the text ends within a row", max(0, len(before) - 1))
    line_start = text.rfind("\n", 0, error.pos) + 1
    return JsonError(f"not JSON: {error.msg} at column {error.pos - line_start + 1}", error.pos)


def _expect_end(text: str, at: int) -> None:
    rest = text[at:].strip(_BLANK)
    if rest:
        raise JsonError(f"more text after the array: {_shown(rest)}", _next(text, at))


def _next(text: str, at: int) -> int:
    """Return where the next character that is no blank stands."""
    while at < len(text) and text[at] in _BLANK:
        at += 1
    return at


def _shown(text: str) -> str:
    return repr(text if len(text) <= 20 else f"{text[:20]}...")


_DECODER = json.JSONDecoder(parse_constant=lambda _: None)
