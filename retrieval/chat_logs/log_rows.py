"""The rows of a log, a trace or an export, whatever wrote the file.

JSON Lines, one JSON array, values over several lines, or vLLM's log as text; UTF-8 or UTF-16, with
a byte order mark or without, any line ends, packed by gzip or not.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from reprise.retrieval.chat_logs.json_values import JsonError, decode, decode_all
from reprise.retrieval.chat_logs.vllm_log import VllmLog, logged_line

_GZIP = b"\x1f\x8b"
_PACKED = {b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}
_BLANK = " \t\r\n"


class LogError(ValueError):
    """A file that cannot be read; the message is one line that names the file and the line."""


class LogRow(NamedTuple):
    """One row of a file."""

    line_number: int
    """Where it begins, from 1."""
    fields: dict[str, Any]


def read_log(path: Path) -> Iterator[LogRow]:
    """Yield the rows of a file.

    Raises:
        LogError: The file, or a row of it, cannot be read; what came before has been yielded.
    """
    try:
        with path.open("rb") as file:
            for number, value in _values(_unpacked(file)):
                if not isinstance(value, dict):
                    kind = type(value).__name__
                    raise _LineError(number, f"expected a JSON object, got {kind}")
                yield LogRow(number, value)
    except _LineError as error:
        raise LogError(f"{path}, line {error.number}: {error}") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise LogError(f"cannot read {path}: damaged gzip file: {error}") from None
    except UnicodeDecodeError as error:  # UTF-16, which is decoded as a whole
        raise LogError(f"cannot read {path}: {error}") from None
    except FileNotFoundError:
        raise LogError(f"cannot read {path}: no such file") from None
    except OSError as error:
        raise LogError(f"cannot read {path}: {error.strerror}") from None


class _LineError(ValueError):
    """Something that is wrong in a line."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.number = number


def _unpacked(file: BinaryIO) -> BinaryIO:
    """Return the file as UTF-8, without gzip around it."""
    begin = file.read(6)
    file.seek(0)
    for magic, name in _PACKED.items():
        if begin.startswith(magic):
            raise _LineError(1, f"packed by {name}; only gzip is unpacked here")
    if begin.startswith(_GZIP):
        file = cast("BinaryIO", gzip.GzipFile(fileobj=file))
        begin = file.read(4)
        file.seek(0)
    # By the places of its zeros, where no mark says it: a log begins with a character of ASCII.
    encoding = json.detect_encoding(begin)
    if encoding.startswith("utf-8"):
        return file
    return io.BytesIO(file.read().decode(encoding).encode())


def _values(file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for the rows of a file in UTF-8; its first line shows its kind."""
    lines = _lines(file)
    for number, text in lines:
        if text[0] == "[":
            yield from _document(number, text, file)
        elif text[0] == "{":
            yield from _json_lines(number, text, lines, file)
        else:
            yield from _text_log(number, text, lines)


def _lines(file: BinaryIO) -> Iterator[tuple[int, str]]:
    """Yield (line number, text) of lines that are not blank."""
    for number, line in enumerate(file, start=1):  # at \n alone: JSON has U+2028 in strings
        if text := _decoded(line, number).strip(_BLANK):
            yield number, text


def _decoded(line: bytes, number: int) -> str:
    try:
        # Also where files were put together, each with a mark of its own.
        return line.decode().lstrip("\ufeff")
    except UnicodeDecodeError as error:
        at = f"byte {line[error.start]:#04x} at column {error.start + 1}"
        raise _LineError(number, f"not UTF-8: {at}") from None


def _document(first: int, text: str, file: BinaryIO) -> Iterator[tuple[int, Any]]:
    """Yield the values of an array, or one after another, from line `first` on."""
    rest = (_decoded(line, number) for number, line in enumerate(file, start=first + 1))
    whole = text + "\n" + "".join(rest)
    number, counted = first, 0
    try:
        for at, value in decode_all(whole):
            number += whole.count("\n", counted, at)
            counted = at
            yield number, value
    except JsonError as problem:
        raise _LineError(first + whole.count("\n", 0, problem.position), str(problem)) from None


def _json_lines(
    first: int, text: str, lines: Iterator[tuple[int, str]], file: BinaryIO
) -> Iterator[tuple[int, Any]]:
    """Yield a value a line; of a structured log of vLLM's, what it logs."""
    vllm = VllmLog()
    for number, line in chain([(first, text)], lines):
        try:
            value = decode(line)
        except JsonError as problem:
            yield from _over_several_lines(number, line, file, problem)
            break
        logged = logged_line(value) if isinstance(value, dict) else None
        if logged is None:
            yield number, value
        else:
            yield from _logged(vllm, number, logged)
    yield from _end(vllm)


def _over_several_lines(
    number: int, line: str, file: BinaryIO, problem: JsonError
) -> Iterator[tuple[int, Any]]:
    """Yield the values from a line on that is none by itself.

    Raises:
        _LineError: They are none; the line is wrong, unless it only opens a value.
    """
    try:
        yield from _document(number, line, file)
    except _LineError as error:
        raise error if line == "{" else _LineError(number, str(problem)) from None


def _text_log(first: int, text: str, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, Any]]:
    """Yield what vLLM has logged as text."""
    vllm = VllmLog()
    for number, line in chain([(first, text)], lines):
        yield from _logged(vllm, number, line)
    yield from _end(vllm)


def _logged(vllm: VllmLog, number: int, line: str) -> Iterator[tuple[int, Any]]:
    try:
        yield from ((number, row) for row in vllm.rows_of(line, number))
    except ValueError as error:
        raise _LineError(number, str(error)) from None


def _end(vllm: VllmLog) -> Iterator[tuple[int, Any]]:
    if (problem := vllm.problem()) is not None:
        raise _LineError(*problem)
    yield from vllm.unanswered()
