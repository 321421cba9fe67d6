"""Answers as JSON Lines: what `reprise cache export` writes and `import` reads.

A row of ours holds token ids. A row of {"prompt", "response"} as text, such as a recorded trace
has, needs a tokenizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from .answer import Answer

Encode = Callable[[str], list[int]]


class _Row(msgspec.Struct, kw_only=True, forbid_unknown_fields=False):
    """Either the token ids or the texts must be there."""

    answer_id: str | None = None
    namespace: str = ""
    model_key: str = ""
    tokenizer_key: str = ""
    prompt_token_ids: list[int] | None = None
    response_token_ids: list[int] | None = None
    prompt_text: str | None = None
    response_text: str | None = None
    prompt: str | None = None
    response: str | None = None
    query: str | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    sampling: dict[str, Any] = msgspec.field(default_factory=dict)
    exact_key: str | None = None
    created_s: float | None = None
    uses: int = 0
    accepted_tokens: int = 0


def row_of(answer: Answer) -> bytes:
    """One line of JSON, without the embedding: that is computed again where it is needed."""
    row = msgspec.structs.asdict(answer)
    for name in ("prompt_tokens", "response_tokens", "embedding", "embedder"):
        del row[name]
    row["prompt_token_ids"] = answer.prompt_token_ids.tolist()
    row["response_token_ids"] = answer.response_token_ids.tolist()
    row["exact_key"] = None if answer.exact_key is None else answer.exact_key.hex()
    return msgspec.json.encode(row)


def read_rows(
    path: Path,
    *,
    encode: Encode | None = None,
    namespace: str | None = None,
    tokenizer_key: str | None = None,
) -> Iterator[Answer]:
    """The answers of a file, line by line.

    Args:
        path: JSON Lines.
        encode: A tokenizer, for rows of text.
        namespace: Instead of the rows' own.
        tokenizer_key: Instead of the rows' own.

    Raises:
        ValueError: The file, or a line of it, cannot be read; names the line.
    """
    decoder = msgspec.json.Decoder(_Row)
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = decoder.decode(line)
                    if namespace is not None:
                        row.namespace, row.exact_key = namespace, None
                    if tokenizer_key is not None:
                        row.tokenizer_key = tokenizer_key
                    yield _answer(row, encode)
                except (msgspec.MsgspecError, ValueError) as error:
                    raise ValueError(f"{path}, line {number}: {error}") from error
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error


def _answer(row: _Row, encode: Encode | None) -> Answer:
    prompt_ids, response_ids = row.prompt_token_ids, row.response_token_ids
    prompt_text = row.prompt_text or row.query or row.prompt or ""
    response_text = row.response_text or row.response or ""
    if prompt_ids is None or response_ids is None:
        if row.prompt is None or row.response is None:
            raise ValueError("expected token ids, or a prompt and a response")
        if encode is None:
            raise ValueError("a row of text needs --tokenizer")
        prompt_ids, response_ids = encode(row.prompt), encode(row.response)
    answer = Answer.create(
        prompt_token_ids=prompt_ids,
        response_token_ids=response_ids,
        namespace=row.namespace,
        model_key=row.model_key,
        answer_id=row.answer_id,
        prompt_text=prompt_text,
        response_text=response_text,
        finish_reason=row.finish_reason,
        stop_reason=row.stop_reason,
        sampling=row.sampling,
        exact_key=None if row.exact_key is None else bytes.fromhex(row.exact_key),
        tokenizer_key=row.tokenizer_key,
        created_s=row.created_s,
    )
    return msgspec.structs.replace(answer, uses=row.uses, accepted_tokens=row.accepted_tokens)
