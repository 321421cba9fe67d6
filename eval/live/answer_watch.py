"""Records the first answers that a real engine gives, step by step.

Of our drafter's the worker knows where each token came from; of vLLM's own only how many tokens
each step emitted is seen from outside, all but the last of which were drafted.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from reprise.engine_ext.answer_page.records import AnswerRecord, SeenAnswer
from reprise.engine_ext.core.request_hints import RequestHints, attach_hints
from reprise.engine_ext.request.request_info import counts_id
from reprise.eval.replay.drafter import unknown_origins
from reprise.spec.api.recorded_steps import MAX_NEAR_PROMPT, RecordedRequest, RecordedStep

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams

_ELSEWHERE = "(a question that is not of this trace)"
# A worker drops what nobody has fetched for a minute; a run may take longer than that.
_FETCH_EVERY_S = 20.0


class AnswerWatch:
    """Watches the first `limit` requests of a run.

    Args:
        asks_worker: our drafter is there, and tells of its drafts.
        source: of what any other drafter drafts, if it has one only.
    """

    def __init__(self, limit: int, *, asks_worker: bool, source: str) -> None:
        self._limit, self._asks_worker, self._source = limit, asks_worker, source
        self._nonce = secrets.token_hex(8)
        self._ids: dict[int, str] = {}
        self._sizes: dict[int, list[int]] = {}
        self._recorded: dict[str, RecordedRequest] = {}
        self._fetched_s = time.monotonic()
        self.num_unrecorded = 0
        """Of the answers that `records` returned: those that our drafter drafted for, and whose
        steps are seen from outside all the same."""

    def prepare(self, number: int, params: SamplingParams) -> None:
        """Have the worker record a request, by its number, if it is one of the first."""
        if self._asks_worker and number < self._limit:
            # As of any request to an engine of one program, but for the recording.
            hints = RequestHints(namespace="", counts_nonce=self._nonce, record=True)
            attach_hints(params, hints)

    def begin(self, number: int, request_id: str) -> None:
        """Note the id under which the engine knows a request."""
        if number < self._limit:
            self._ids[number] = request_id
            self._sizes[number] = []

    def note_step(self, number: int, num_tokens: int) -> None:
        """Note what a step emitted."""
        if number in self._sizes and num_tokens:
            self._sizes[number].append(num_tokens)

    def keep_up(self, llm: LLM) -> None:
        """Now and then, fetch what the worker has recorded of requests that are over."""
        if self._asks_worker and time.monotonic() - self._fetched_s > _FETCH_EVERY_S:
            self._fetch(llm)

    def _fetch(self, llm: LLM) -> None:
        ids = [counts_id(self._nonce, request_id) for request_id in self._ids.values()]
        found = llm.collective_rpc("reprise_draft_counts", args=(ids,))[0]
        self._recorded |= {
            id_: msgspec.convert(counts["record"], RecordedRequest)
            for id_, counts in found.items()
            if "record" in counts
        }
        self._fetched_s = time.monotonic()

    def records(
        self, llm: LLM, outputs: Sequence[Sequence[int]], questions: Mapping[tuple[int, ...], str]
    ) -> list[AnswerRecord]:
        """Return the answers in order, when all is over.

        Args:
            outputs: token ids of all answers.
            questions: of prompts, by their last `MAX_NEAR_PROMPT` token ids.
        """
        if self._asks_worker:
            self._fetch(llm)
        records = []
        for number, request_id in sorted(self._ids.items()):
            tokens = list(outputs[number])
            record = self._recorded.get(counts_id(self._nonce, request_id))
            if record is not None and sum(s.num_emitted for s in record.steps) == len(tokens) - 1:
                records.append(_of_worker(tokens, record, questions))
            else:
                self.num_unrecorded += self._asks_worker
                records.append(self._seen_from_outside(tokens, self._sizes[number]))
        return records

    def _seen_from_outside(self, tokens: list[int], sizes: Sequence[int]) -> AnswerRecord:
        steps: list[RecordedStep] = []
        at = sizes[0] if sizes else 0
        for size in sizes[1:]:
            accepted = unknown_origins(tokens[at : at + size - 1], self._source)
            steps.append(RecordedStep(size, size - 1, accepted))
            at += size
        return AnswerRecord(tokens, steps, has_whole_drafts=False)


def _of_worker(
    tokens: list[int], record: RecordedRequest, questions: Mapping[tuple[int, ...], str]
) -> AnswerRecord:
    near: dict[str, Any] = {
        answer_id: SeenAnswer(
            questions.get(tuple(each.prompt_token_ids), _ELSEWHERE), each.similarity, each.clause
        )
        for answer_id, each in record.near.items()
    }
    return AnswerRecord(tokens, record.steps, near)


def questions_by_prompt(
    prompts: Sequence[Sequence[int]], questions: Sequence[str]
) -> dict[tuple[int, ...], str]:
    """Return questions by the end of their prompts, as `records` takes them."""
    return {
        tuple(prompt[-MAX_NEAR_PROMPT:]): question
        for prompt, question in zip(prompts, questions, strict=True)
    }
