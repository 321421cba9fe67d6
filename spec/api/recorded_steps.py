"""The steps of one answer, for those who want to see them: what was drafted, and what came of it.

Nothing is recorded unless it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from reprise.spec.api.near_answer import NearAnswer

MAX_NEAR_PROMPT = 2048
MAX_RECORDED_TOKENS = 8192
"""Emitted and drafted, of one request: clients may ask for recording, and so for memory."""


class DraftedToken(NamedTuple):
    """A token of a draft, and where it came from."""

    token_id: int
    source: str
    """One of `SOURCES`: that of the strongest evidence for it, where several had it. Empty: the
    method does not say."""
    answer_id: str | None = None
    """The near answer that it came from."""


class RecordedStep(msgspec.Struct, frozen=True):
    """One verification step of a request."""

    num_emitted: int
    num_accepted: int
    """Of the draft. What was emitted beyond them, the model added itself."""
    draft: list[DraftedToken] = []


class RecordedNear(msgspec.Struct, frozen=True):
    """A near answer that a request was drafted from."""

    similarity: float
    """Cosine in [-1, 1] between the prompts."""
    clause: int
    """0: found for the whole prompt; 1, 2, ...: for that clause of it."""
    prompt_token_ids: list[int]
    """Of its question, the last `MAX_NEAR_PROMPT` of them."""


class RecordedRequest(msgspec.Struct, frozen=True):
    """What was recorded of a request."""

    steps: list[RecordedStep]
    near: dict[str, RecordedNear] = {}
    """By answer id: those that something was drafted from."""


class StepRecorder:
    """Records the steps of one request from what its drafter sees of it.

    `observe` what was emitted, then `note_draft` what is to be verified next, in turns, as the
    drafter does. Of a request with more than `MAX_RECORDED_TOKENS` nothing is recorded.
    """

    def __init__(self) -> None:
        self.steps: list[RecordedStep] = []
        self._near: dict[str, NearAnswer] = {}
        self._draft: list[DraftedToken] = []
        self._has_emitted = False
        self._room = MAX_RECORDED_TOKENS

    def observe(self, token_ids: Sequence[int]) -> None:
        """Record tokens that were emitted: by one step, or, without a draft, by several."""
        if not len(token_ids) or not self._has_room_for(len(token_ids)):
            return
        draft, self._draft = self._draft, []
        tokens = [int(token) for token in token_ids]
        accepted = num_accepted(draft, tokens)
        if self._has_emitted or draft:
            first = min(accepted + 1, len(tokens))
            self.steps.append(RecordedStep(first, accepted, draft))
            rest = len(tokens) - first
        else:  # the answer's first token comes from the prefill and is no step
            rest = len(tokens) - 1
        self.steps += [RecordedStep(1, 0)] * rest
        self._has_emitted = True

    def note_draft(self, draft: Sequence[DraftedToken]) -> None:
        """Record what the next step verifies."""
        if self._has_room_for(len(draft)):
            self._draft = list(draft)

    def note_near(self, near_answers: Iterable[NearAnswer]) -> None:
        """Record what drafts may come from."""
        self._near.update((near.answer_id, near) for near in near_answers)

    def _has_room_for(self, num_tokens: int) -> bool:
        self._room -= num_tokens
        if self._room < 0:
            self.steps, self._draft, self._near = [], [], {}
        return self._room >= 0

    def record(self) -> RecordedRequest | None:
        """Return what there is so far; None: it was too much."""
        if self._room < 0:
            return None
        used = {token.answer_id for step in self.steps for token in step.draft}
        near = {
            answer_id: RecordedNear(
                float(each.similarity),
                each.clause,
                [int(token) for token in each.prompt_token_ids[-MAX_NEAR_PROMPT:]],
            )
            for answer_id, each in self._near.items()
            if answer_id in used
        }
        return RecordedRequest(self.steps, near)


def num_accepted(draft: Sequence[DraftedToken], emitted: Sequence[int]) -> int:
    """Return how many tokens of a draft were emitted, from its start on."""
    number = 0
    while number < min(len(draft), len(emitted)) and draft[number].token_id == emitted[number]:
        number += 1
    return number
