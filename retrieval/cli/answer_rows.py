"""Answers as JSON Lines: what `reprise cache export` writes and `import` reads.

A row of ours holds token ids. A row of {"prompt", "response"} as text, such as a recorded trace
has, needs a tokenizer, and so do chat logs (`chat_rows`), whose tokenizer must have a chat template
too. A file may be packed by gzip, or be one JSON array.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, cast

import msgspec

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.cli.chat_rows import Exchange, exchanges_of, is_chat_row
from reprise.retrieval.query.turns import query_of_messages

_GZIP = b"\x1f\x8b"
_EXPECTED = (
    "token ids, a prompt and a response, messages, conversations, or a request and a response"
)


class TextTokenizer(Protocol):
    """Makes token ids of text, as `PromptTokenizer` does."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of the prompt that asks for the next message of a chat."""


class _Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=False):
    """Either the token ids or the texts must be there."""

    answer_id: str | int | None = None
    namespace: str | int = ""
    model_key: str = ""
    tokenizer_key: str = ""
    prompt_token_ids: list[int] | None = None
    response_token_ids: list[int] | None = None
    prompt_text: str | None = None
    response_text: str | None = None
    prompt: str | list[int] | None = None
    response: str | list[int] | None = None
    query: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    created_s: float | None = None
    uses: int = 0
    accepted_tokens: int = 0


def row_of(answer: Answer) -> bytes:
    """Return one line of JSON, without the embedding: that is computed again where it is needed."""
    row = msgspec.structs.asdict(answer)
    for name in ("prompt_tokens", "response_tokens", "exact_key", "embedding", "embedder"):
        del row[name]
    row["prompt_token_ids"] = answer.prompt_token_ids.tolist()
    row["response_token_ids"] = answer.response_token_ids.tolist()
    return msgspec.json.encode(row)


def read_rows(
    path: Path,
    *,
    tokenizer: TextTokenizer | None = None,
    namespace: str | None = None,
    tokenizer_key: str | None = None,
    on_empty: Callable[[], None] = lambda: None,
) -> Iterator[Answer]:
    """Yield the answers of a file, row by row.

    Args:
        path: JSON Lines, or a JSON array.
        tokenizer: For rows of text.
        namespace: Instead of the rows' own.
        tokenizer_key: Instead of the rows' own.
        on_empty: Called for each row of a chat log that holds no answer.

    Raises:
        ValueError: The file, or a row of it, cannot be read; names the line and what was expected.
    """
    try:
        with path.open("rb") as file:
            is_packed = file.read(2) == _GZIP
            file.seek(0)
            unpacked = cast("BinaryIO", gzip.GzipFile(fileobj=file)) if is_packed else file
            for where, line in _raw_rows(unpacked):
                try:
                    answers = list(_answers(line, tokenizer, namespace, tokenizer_key))
                except (msgspec.MsgspecError, ValueError) as error:
                    raise ValueError(f"{path}, {where}: {error}") from error
                if not answers:
                    on_empty()
                yield from answers
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {path}: damaged gzip file: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _raw_rows(file: BinaryIO) -> Iterator[tuple[str, bytes | msgspec.Raw]]:
    """Yield (which line, its JSON) for each row."""
    for number, line in enumerate(file, start=1):
        stripped = line.strip()
        if not stripped:
            continue
        if number == 1 and stripped.startswith(b"["):
            try:
                rows = msgspec.json.decode(line + file.read(), type=list[msgspec.Raw])
            except msgspec.MsgspecError as error:
                raise ValueError(f"the JSON array cannot be read: {error}") from error
            yield from ((f"row {row} of the array", raw) for row, raw in enumerate(rows, start=1))
            return
        yield f"line {number}", line


def _answers(
    line: bytes | msgspec.Raw,
    tokenizer: TextTokenizer | None,
    namespace: str | None,
    tokenizer_key: str | None,
) -> Iterator[Answer]:
    plain = msgspec.json.decode(line)
    if not isinstance(plain, Mapping):
        raise ValueError(f"expected an object with {_EXPECTED}, got {type(plain).__name__}")
    if is_chat_row(plain):
        for exchange in exchanges_of(plain):
            yield _answer_of(exchange, tokenizer, namespace or "", tokenizer_key or "")
        return
    row = msgspec.convert(plain, _Row)
    if namespace is not None:
        row.namespace = namespace
    if tokenizer_key is not None:
        row.tokenizer_key = tokenizer_key
    yield _answer(row, tokenizer)


def _answer_of(
    exchange: Exchange, tokenizer: TextTokenizer | None, namespace: str, tokenizer_key: str
) -> Answer:
    """Return the answer of a chat log."""
    if tokenizer is None:
        raise ValueError("a chat log needs --tokenizer")
    if exchange.messages is None:
        prompt_ids, query = tokenizer.encode(exchange.prompt), exchange.prompt
    else:
        prompt_ids = tokenizer.encode_chat(exchange.messages)
        query = query_of_messages(exchange.messages)
    return Answer.create(
        prompt_token_ids=prompt_ids,
        response_token_ids=tokenizer.encode(exchange.response),
        namespace=namespace,
        prompt_text=query,
        response_text=exchange.response,
        tokenizer_key=tokenizer_key,
    )


def _answer(row: _Row, tokenizer: TextTokenizer | None) -> Answer:
    prompt_ids = row.prompt_token_ids
    response_ids = row.response_token_ids
    if prompt_ids is None or response_ids is None:
        if row.prompt is None or row.response is None:
            raise ValueError(f"expected {_EXPECTED}")
        prompt_ids, response_ids = _ids(row.prompt, tokenizer), _ids(row.response, tokenizer)
    prompt, response = (
        text if isinstance(text, str) else "" for text in (row.prompt, row.response)
    )
    answer = Answer.create(
        prompt_token_ids=prompt_ids,
        response_token_ids=response_ids,
        namespace=str(row.namespace),
        model_key=row.model_key,
        answer_id=None if row.answer_id is None else str(row.answer_id),
        prompt_text=row.prompt_text or row.query or prompt,
        response_text=row.response_text or response,
        finish_reason=row.finish_reason,
        stop_reason=row.stop_reason,
        tokenizer_key=row.tokenizer_key,
        created_s=row.created_s,
    )
    return msgspec.structs.replace(answer, uses=row.uses, accepted_tokens=row.accepted_tokens)


def _ids(text: str | list[int], tokenizer: TextTokenizer | None) -> list[int]:
    if isinstance(text, list):
        return text
    if tokenizer is None:
        raise ValueError("a row of text needs --tokenizer")
    return tokenizer.encode(text)
