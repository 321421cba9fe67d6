"""Answers with their steps, as a page shows them: recorded while a trace is replayed or served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from reprise.eval.replay.drafter import Drafter, SeenAnswer
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.eval.replay.traces import TraceRow
from reprise.spec.api.recorded_steps import RecordedStep, StepRecorder

MAX_RECORDED = 24
"""Answers of a trace, the first ones: a page is to be read."""


class AnswerRecord(msgspec.Struct, frozen=True):
    """One answer, step by step."""

    token_ids: list[int]
    """The first of them comes from the prefill and is of no step."""
    steps: list[RecordedStep]
    near: dict[str, SeenAnswer] = {}
    """By answer id: those that drafts came from."""
    has_whole_drafts: bool = True
    """False: the steps' drafts are what was accepted of them; the rest is not known."""


class CachedReply(msgspec.Struct, frozen=True):
    """What a semantic cache would have said instead of asking the model."""

    question: str
    """The earlier one that it takes for the same."""
    similarity: float
    token_ids: list[int]


class RecordedTrace(msgspec.Struct):
    """What a page shows of a trace: its first requests."""

    questions: list[str]
    prompts: list[str]
    """The whole of each, of which the question may be a part."""
    answers: dict[str, list[AnswerRecord]] = {}
    """Of each method that asks the model, in the order of `questions`."""
    cached: list[CachedReply | None] | None = None
    """None instead of a reply: the semantic cache would have asked the model. None instead of a
    list: it was not looked into."""


def recorded_trace(rows: Sequence[TraceRow]) -> RecordedTrace:
    """Return the requests of a trace whose answers are to be recorded; no answers yet."""
    first = [row for row in rows if not row.warm][:MAX_RECORDED]
    return RecordedTrace([row.query_text for row in first], [row.prompt for row in first])


class ReplayRecorder:
    """Records the first answers of a replay."""

    def __init__(self, drafter: Drafter, *, limit: int = MAX_RECORDED) -> None:
        self.answers: list[AnswerRecord] = []
        self._drafter = drafter
        self._limit = limit
        self._steps: StepRecorder | None = None

    def begin(self) -> None:
        """A request begins."""
        self._steps = StepRecorder() if len(self.answers) < self._limit else None

    def observe(self, token_ids: IntArray) -> None:
        """Tokens were emitted."""
        if self._steps is not None:
            self._steps.observe(token_ids.tolist())

    def note_draft(self, draft: Sequence[int]) -> None:
        """A draft is verified next."""
        if self._steps is not None:
            self._steps.note_draft(self._drafter.origins_of(draft))

    def end(self, row: TokenRow) -> None:
        """The request that began last is over."""
        if self._steps is None:
            return
        steps = self._steps.steps
        self.answers.append(
            AnswerRecord(row.response_token_ids.tolist(), steps, used(steps, self._drafter.near))
        )


def used(steps: Sequence[RecordedStep], near: Mapping[str, SeenAnswer]) -> dict[str, SeenAnswer]:
    """Return those near answers that something was drafted from, the most similar one first."""
    ids = {token.answer_id for step in steps for token in step.draft}
    found = [(answer_id, near[answer_id]) for answer_id in near if answer_id in ids]
    return dict(sorted(found, key=lambda pair: -pair[1].similarity))
