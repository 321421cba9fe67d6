"""Answers as JSON Lines: what `reprise cache export` writes and `import` reads.

A row of ours holds token ids. A row of {"prompt", "response"} as text, such as a recorded trace
has, needs a tokenizer, and so do chat logs (`chat_logs`), whose tokenizer must have a chat template
too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec

from reprise.retrieval.api.answer import Answer
from reprise.retrieval.chat_logs.exchanges import Exchange, exchanges_of, is_chat_row
from reprise.retrieval.chat_logs.log_rows import LogError, read_log
from reprise.retrieval.query.turns import query_of_messages

_EXPECTED = (
    "token ids, a prompt and a response, messages, conversations, or a request and a response"
)
# Sums of counts, and ages in milliseconds, must fit what tiers keep them in.
_Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 48)]
_LATEST_S = 4_102_444_800  # 2100


class TextTokenizer(Protocol):
    """Makes token ids of text, as `PromptTokenizer` does."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text."""

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the token ids of the prompt that asks for the next message of a chat."""

    def query_of(self, prompt: str) -> str:
        """Return what a prompt that has been through the chat template asks."""


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
    created_s: Annotated[float, msgspec.Meta(ge=0, le=_LATEST_S)] | None = None
    uses: _Count = 0
    accepted_tokens: _Count = 0
    embedding: bytes = b""
    embedder: str = ""


def row_of(answer: Answer) -> bytes:
    """Return one line of JSON; the embedding, in base64, spares who imports it computing it."""
    row = msgspec.structs.asdict(answer)
    for name in ("prompt_tokens", "response_tokens", "exact_key"):
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
        path: Any file that `read_log` reads.
        tokenizer: For rows of text.
        namespace: Instead of the rows' own.
        tokenizer_key: Instead of the rows' own.
        on_empty: Called for each row without a question or an answer; it is left out.

    Raises:
        ValueError: The file, or a row of it, cannot be read; names the line and what was expected.
    """
    for row in read_log(path):
        try:
            answers = list(_answers(row.fields, tokenizer, namespace, tokenizer_key))
        except (msgspec.MsgspecError, ValueError) as error:
            raise LogError(f"{path}, line {row.line_number}: {error}") from error
        if not answers:
            on_empty()
        yield from answers


def _answers(
    fields: Mapping[str, Any],
    tokenizer: TextTokenizer | None,
    namespace: str | None,
    tokenizer_key: str | None,
) -> Iterator[Answer]:
    if is_chat_row(fields):
        for exchange in exchanges_of(fields):
            yield _answer_of(exchange, tokenizer, namespace or "", tokenizer_key or "")
        return
    row = msgspec.convert(fields, _Row)
    if namespace is not None:
        row.namespace = namespace
    if tokenizer_key is not None:
        row.tokenizer_key = tokenizer_key
    if (answer := _answer(row, fields.keys(), tokenizer)) is not None:
        yield answer


def _answer_of(
    exchange: Exchange, tokenizer: TextTokenizer | None, namespace: str, tokenizer_key: str
) -> Answer:
    """Return the answer of a chat log."""
    if tokenizer is None:
        raise ValueError("a chat log needs --tokenizer")
    if exchange.messages is None:
        prompt_ids = tokenizer.encode(exchange.prompt)
        query = tokenizer.query_of(exchange.prompt) if exchange.rendered else exchange.prompt
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


def _answer(row: _Row, given: Set[str], tokenizer: TextTokenizer | None) -> Answer | None:
    """Return the answer of a row that has these fields; None: it has no question or no answer."""
    asked: str | list[int] | None = row.prompt_token_ids
    answered: str | list[int] | None = row.response_token_ids
    if asked is None or answered is None:
        if not given >= {"prompt", "response"}:
            raise ValueError(f"expected {_EXPECTED}")
        asked, answered = row.prompt, row.response
    if not asked or not answered:
        return None
    prompt_ids, response_ids = _ids(asked, tokenizer), _ids(answered, tokenizer)
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
    return msgspec.structs.replace(
        answer,
        uses=row.uses,
        accepted_tokens=row.accepted_tokens,
        embedding=row.embedding,
        embedder=row.embedder if row.embedding else "",
    )


def _ids(text: str | list[int], tokenizer: TextTokenizer | None) -> list[int]:
    if isinstance(text, list):
        return text
    if tokenizer is None:
        raise ValueError("a row of text needs --tokenizer")
    return tokenizer.encode(text)
