"""What a page of answers is made from: answers with their steps, and what else there is to say."""

from __future__ import annotations

import msgspec

from reprise.spec.api.recorded_steps import RecordedStep

MAX_RECORDED = 24
"""Answers of a trace or a namespace: a page is to be read."""


class SeenAnswer(msgspec.Struct, frozen=True):
    """A near answer, as people want to see it."""

    question: str
    similarity: float
    """Cosine in [-1, 1]."""
    clause: int = 0
    """0: found for the whole prompt; 1, 2, ...: for that clause of it."""


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
    """What a page shows of a trace: its first requests; or of a server, its last ones."""

    questions: list[str]
    prompts: list[str]
    """The whole of each, of which the question may be a part."""
    answers: dict[str, list[AnswerRecord]] = {}
    """Of each method that asks the model, in the order of `questions`."""
    cached: list[CachedReply | None] | None = None
    """None instead of a reply: the semantic cache would have asked the model. None instead of a
    list: it was not looked into."""
