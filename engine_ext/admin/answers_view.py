"""The page `/reprise/view`: the last answers of the caller's own namespace that were recorded."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException
from vllm.exceptions import VLLMValidationError

from reprise.engine_ext.answer_page.answer_html import answers_section
from reprise.engine_ext.answer_page.document import document, escaped
from reprise.engine_ext.answer_page.records import AnswerRecord, RecordedTrace, SeenAnswer
from reprise.engine_ext.answer_page.shown import MAX_TOKENS, shown_trace
from reprise.engine_ext.core.config import RepriseConfig
from reprise.engine_ext.request.http_context import current_http_context
from reprise.engine_ext.request.recorded_answers import RecordedAnswer
from reprise.engine_ext.request.request_control import HEADER_PREFIX, parse_control
from reprise.engine_ext.request.tenants import isolation_of
from reprise.retrieval.query.prompt_tokenizer import PromptTokenizer

_NAMESPACE_HEADER = f"{HEADER_PREFIX}namespace"
_WHICH = "the last that asked to be recorded"
_NOT_REQUESTS = {
    "stored": "answers stored",
    "tokens_saved": "output tokens not generated",
    "checked": "stored answers checked by the model",
    "verified": "stored answers that began as the model does",
    "tokens_verified": "output tokens verified, not generated one by one",
}
"""Counts beside those of requests by kind."""


def callers_namespace(config: RepriseConfig) -> str:
    """Return the namespace that a request of this caller, without a salt, would have.

    Raises:
        HTTPException: 403, the caller's tenant is unknown; 400, it names an invalid namespace.
    """
    context = current_http_context.get()
    headers = {} if context is None else context.headers
    named = {n: value for n, value in headers.items() if n == _NAMESPACE_HEADER}
    try:
        control = parse_control(named, None)
    except VLLMValidationError as error:
        raise HTTPException(400, str(error)) from None
    namespace = isolation_of(
        operators=config.namespace,
        clients=control.namespace if config.serving.client_namespaces else None,
        tenant=None if context is None else context.tenant,
    ).namespace
    if namespace is None:
        raise HTTPException(
            403,
            "whose answers to show is not known: send the API key of the requests beside the admin"
            " token",
        )
    return namespace


class _Tokens:
    """The engine's tokenizer, as the page reads tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        end = getattr(tokenizer, "eos_token_id", None)
        self.end_token_id = end if isinstance(end, int) else -1

    def decode(self, token_ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=False)
        return text


def answers_view(
    namespace: str,
    recorded: Sequence[RecordedAnswer],
    tokenizer: Any,
    *,
    front_end: Mapping[str, Any],
    workers: Sequence[Any],
) -> str:
    """Return the page.

    Args:
        namespace: whose answers these are.
        recorded: the answers, the last one first.
        tokenizer: the engine's.
        front_end: its figures, as in `/reprise/stats`.
        workers: theirs.
    """
    figures = "".join(
        f"<tr><td>{escaped(name)}</td><td>{escaped(value)}</td></tr>"
        for name, value in live_figures(front_end, workers)
    )
    body = (
        "<h1>Recorded answers</h1>\n<p>Figures of all requests to this API server process and its"
        " workers since they started; answers of "
        f"{f'the namespace {escaped(namespace)}' if namespace else 'requests without a key'} that"
        f" asked to be recorded.</p>\n<div class=card><table><tbody>{figures}</tbody></table></div>"
    )
    reader = PromptTokenizer.wrapping(tokenizer)

    def question(token_ids: Sequence[int]) -> str:
        return reader.query_of(reader.decode(list(token_ids)))

    trace = RecordedTrace(
        questions=[question(one.prompt_token_ids) for one in recorded],
        prompts=[reader.decode(one.prompt_token_ids) for one in recorded],
        answers={
            "reprise": [
                AnswerRecord(
                    one.token_ids,
                    one.record.steps,
                    {
                        answer_id: SeenAnswer(
                            question(near.prompt_token_ids), near.similarity, near.clause
                        )
                        for answer_id, near in one.record.near.items()
                    },
                )
                for one in recorded
            ]
        },
    )
    shown = shown_trace(trace, _Tokens(tokenizer), max_tokens=MAX_TOKENS, which=_WHICH)
    if shown is None:
        body += f"<p>None yet. Requests ask by the header {HEADER_PREFIX}record: on.</p>"
        return document("Reprise: answers", body, has_answers=False)
    body += answers_section([(namespace or "this server", shown)], threshold=0.0)
    return document("Reprise: answers", body, has_answers=True)


def live_figures(front_end: Mapping[str, Any], workers: Sequence[Any]) -> list[tuple[str, str]]:
    """Return names and values: how requests were answered, what drafts came to, what is broken."""
    counts = front_end.get("counts") or {}
    rows = [(f"requests: {kind}", f"{counts[kind]:,}") for kind in counts.keys() - _NOT_REQUESTS]
    rows.sort()
    rows += [(text, f"{counts[name]:,}") for name, text in _NOT_REQUESTS.items() if name in counts]
    drafts = [w["provider"] for w in workers if isinstance(w, Mapping) and "provider" in w]
    steps = sum(each["steps"] for each in drafts)
    accepted = sum(each["accepted"] for each in drafts)
    rows.append(("mean acceptance length", f"{1 + accepted / steps:.2f}" if steps else "no steps"))
    for source in ("near_answer", "context", "corpus"):
        number = sum(each["by_source"][source]["accepted"] for each in drafts)
        rows.append((f"accepted tokens: {source.replace('_', ' ')}", f"{number:,}"))
    breakers = (front_end.get("retrieval") or {}).get("breakers") or {}
    rows += [(f"circuit breaker: {name}", str(state)) for name, state in breakers.items()]
    return rows
