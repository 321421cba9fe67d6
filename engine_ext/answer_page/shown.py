"""Recorded answers as they are shown: texts for token ids, sources by step, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from reprise.engine_ext.answer_page.records import (
    AnswerRecord,
    CachedReply,
    RecordedTrace,
    SeenAnswer,
)
from reprise.engine_ext.answer_page.token_texts import token_texts
from reprise.spec.api.recorded_steps import DraftedToken, RecordedStep

MODEL, UNKNOWN = "model", "draft"
SOURCES = (MODEL, "near_answer", "context", "corpus", UNKNOWN)
"""Where a token came from, as it is told apart here; `draft`: its method does not say."""

MAX_TOKENS = 8000
"""Of all answers of a page, those of one method: with its bars each takes some hundred bytes."""

_FIRST_CHOICE = ("reprise", "reprise-drafts-only", "suffix-long", "suffix", "ngram", "none")


class ReadsTokens(Protocol):
    """How the tokens of a model are read."""

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids, special tokens included."""


class ShownToken(NamedTuple):
    """One token of an answer."""

    text: str
    source: str
    near: int = -1
    """Number of the near answer that it came from."""
    is_end: bool = False
    """It ends the answer, and has no text."""


class ShownStep(NamedTuple):
    """What one step emitted; the first one of an answer is the prefill."""

    tokens: list[ShownToken]
    drafted: int = 0
    rejected: str = ""
    """The rest of its draft, which the model did not agree with."""


class ShownReply(NamedTuple):
    """What a semantic cache would have said."""

    question: str
    similarity: float
    text: str


class ShownAnswer(NamedTuple):
    """One request and its answer."""

    question: str
    prompt: str
    text: str
    steps: list[ShownStep]
    near: list[SeenAnswer]
    bars: dict[str, list[ShownStep]]
    """The same request by each method."""
    knows_drafts: bool
    """Whether the steps tell what was drafted in vain."""
    others: list[str]
    """Methods whose answer is not this one, token for token."""
    cached: ShownReply | None

    @property
    def num_tokens(self) -> int:
        """Tokens of the answer."""
        return sum(len(step.tokens) for step in self.steps)

    def by_source(self) -> Counter[str]:
        """Tokens by source."""
        return Counter(token.source for step in self.steps for token in step.tokens)


class ShownTrace(NamedTuple):
    """What is shown of a trace."""

    method: str
    """Whose answers are shown token by token."""
    answers: list[ShownAnswer]
    has_cache: bool
    """Whether a semantic cache was looked into."""
    which: str
    """Which answers these are, of all that there were."""


def shown_traces(
    recorded: Mapping[str, RecordedTrace], tokenizer: ReadsTokens
) -> list[tuple[str, ShownTrace]]:
    """Return what a page shows of all these traces, by name, in some 8,000 tokens together."""
    most = MAX_TOKENS // max(1, len(recorded))
    shown = [
        (name, shown_trace(trace, tokenizer, max_tokens=most)) for name, trace in recorded.items()
    ]
    return [(name, trace) for name, trace in shown if trace is not None]


def shown_trace(
    recorded: RecordedTrace,
    tokenizer: ReadsTokens,
    *,
    max_tokens: int,
    which: str = "the first of the trace",
) -> ShownTrace | None:
    """Return what is shown of a recorded trace: its first answers, up to so many tokens, at least
    one of them; None if no method that asks the model was recorded."""
    method = next((name for name in _FIRST_CHOICE if recorded.answers.get(name)), None)
    if method is None:
        return None
    answers: list[ShownAnswer] = []
    for number in range(len(recorded.answers[method])):
        answers.append(_shown_answer(recorded, number, method, tokenizer))
        max_tokens -= answers[-1].num_tokens
        if max_tokens <= 0:
            break
    return ShownTrace(method, answers, recorded.cached is not None, which)


def _shown_answer(
    recorded: RecordedTrace, number: int, method: str, tokenizer: ReadsTokens
) -> ShownAnswer:
    record = recorded.answers[method][number]
    by_method = {name: answers[number] for name, answers in recorded.answers.items()}
    steps = _shown_steps(record, tokenizer)
    return ShownAnswer(
        question=recorded.questions[number],
        prompt=recorded.prompts[number],
        text="".join(token.text for step in steps for token in step.tokens),
        steps=steps,
        near=list(record.near.values()),
        bars={name: _shown_steps(each, tokenizer) for name, each in by_method.items()},
        knows_drafts=record.has_whole_drafts,
        others=[n for n, each in by_method.items() if each.token_ids != record.token_ids],
        cached=_shown_reply(recorded.cached[number], tokenizer) if recorded.cached else None,
    )


def _shown_steps(record: AnswerRecord, tokenizer: ReadsTokens) -> list[ShownStep]:
    numbers = {answer_id: number for number, answer_id in enumerate(record.near)}
    texts = token_texts(record.token_ids, tokenizer.decode)
    tokens = [
        ShownToken("" if token_id == tokenizer.end_token_id else said, MODEL, -1, is_end)
        for token_id, said in zip(record.token_ids, texts, strict=True)
        for is_end in [token_id == tokenizer.end_token_id]
    ]
    shown = [ShownStep(tokens[:1])] if tokens else []
    at = 1
    for step in record.steps:
        accepted = [
            token._replace(
                source=origin.source or UNKNOWN,
                near=numbers.get(origin.answer_id or "", -1),
            )
            for token, origin in zip(tokens[at:], step.draft[: step.num_accepted], strict=False)
        ]
        added = tokens[at + step.num_accepted : at + step.num_emitted]
        shown.append(ShownStep([*accepted, *added], len(step.draft), _rejected(step, tokenizer)))
        at += step.num_emitted
    return shown


def _shown_reply(reply: CachedReply | None, tokenizer: ReadsTokens) -> ShownReply | None:
    if reply is None:
        return None
    said = [token for token in reply.token_ids if token != tokenizer.end_token_id]
    return ShownReply(reply.question, reply.similarity, tokenizer.decode(said))


def _rejected(step: RecordedStep, tokenizer: ReadsTokens) -> str:
    left: list[DraftedToken] = step.draft[step.num_accepted :]
    return tokenizer.decode([token.token_id for token in left]) if left else ""
