"""Answers with their steps, as a page shows them: recorded while a trace is replayed or served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reprise.engine_ext.answer_page.records import (
    MAX_RECORDED,
    AnswerRecord,
    RecordedTrace,
    SeenAnswer,
)
from reprise.eval.replay.drafter import Drafter
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.eval.replay.traces import TraceRow
from reprise.spec.api.recorded_steps import RecordedStep, StepRecorder


def recorded_trace(rows: Sequence[TraceRow]) -> RecordedTrace:
    """Return the requests of a trace whose answers are to be recorded; no answers yet."""
    first = [row for row in rows if not row.warm][:MAX_RECORDED]
    return RecordedTrace([row.query_text for row in first], [row.prompt for row in first])


class ReplayRecorder:
    """Records the first answers of a replay."""

    def __init__(self, drafter: Drafter) -> None:
        self.answers: list[AnswerRecord] = []
        self._drafter = drafter
        self._steps: StepRecorder | None = None

    def begin(self) -> None:
        """A request begins."""
        self._steps = StepRecorder() if len(self.answers) < MAX_RECORDED else None

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
