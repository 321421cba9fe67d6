"""What the device knows of the requests in its slots: whose they are, and their near answers."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.speculator.upload import prepare
from reprise.kernels.draft.constants import (
    ANSWER_BEGIN,
    CORPUS_ROW,
    GENERATION,
    NEAR_LENGTH,
    SLOT_FIELDS,
)
from reprise.kernels.draft.near_row import near_row
from reprise.kernels.draft.state import DraftState
from reprise.retrieval.api.near_answer import NearAnswer


class SlotRows:
    """Writes the rows of slots; the thread that launches steps only.

    A request holds one slot until it ends or is preempted, and its near answers come with it when
    it goes on in another one.
    """

    def __init__(self, state: DraftState) -> None:
        self._state = state
        self._rows = np.zeros((state.num_slots, SLOT_FIELDS), np.int32)
        self._slots: dict[str, int | None] = {}  # None: preempted
        self._near: dict[str, NDArray[np.int32]] = {}
        self._num_requests = 0
        self.nearest: dict[str, str] = {}
        """By request: the id of the answer that is nearest to it."""

    def clear(self, slots: Sequence[int]) -> None:
        """Have nothing drafted in these slots but from the context, whatever was there before."""
        self._rows[slots] = 0
        self._rows[slots, CORPUS_ROW] = -1
        for slot in slots:
            self._num_requests += 1
            self._rows[slot, GENERATION] = self._num_requests
            self._write(slot)

    def assign(
        self, request_id: str, slot: int, *, num_prompt_tokens: int, corpus_row: int
    ) -> None:
        """Give a slot that is cleared to a request."""
        row = self._rows[slot]
        row[ANSWER_BEGIN], row[CORPUS_ROW] = num_prompt_tokens, corpus_row
        self._slots[request_id] = slot
        self._write(slot)
        if request_id in self._near:
            self._write_near(slot, self._near[request_id])

    def attach(self, request_id: str, near_answers: Sequence[NearAnswer]) -> None:
        """Give a request near answers to draft from; an unknown id is ignored."""
        if request_id not in self._slots:
            return
        answers = [answer.response_token_ids for answer in near_answers]
        tokens = near_row(answers, max_near_tokens=self._state.near_token_ids.shape[1])
        self._near[request_id] = tokens
        if near_answers:
            self.nearest[request_id] = near_answers[0].answer_id
        if (slot := self._slots[request_id]) is not None:
            self._write_near(slot, tokens)

    def set_corpus_row(self, request_id: str, corpus_row: int) -> None:
        """Have a request drafted for from a corpus that has only come to be."""
        slot = self._slots.get(request_id)
        if slot is not None and self._rows[slot, CORPUS_ROW] != corpus_row:
            self._rows[slot, CORPUS_ROW] = corpus_row
            self._write(slot)

    def leave(self, request_id: str) -> None:
        """Take a request out of its slot for the time being."""
        if request_id in self._slots:
            self._slots[request_id] = None

    def end(self, request_id: str) -> None:
        """Forget a request."""
        self._slots.pop(request_id, None)
        self._near.pop(request_id, None)
        self.nearest.pop(request_id, None)

    def _write_near(self, slot: int, tokens: NDArray[np.int32]) -> None:
        # The length last: what lies beyond it is never read.
        self._rows[slot, NEAR_LENGTH] = len(tokens)
        if len(tokens):
            prepare(self._state.near_token_ids[slot, : len(tokens)], tokens).enqueue()
        self._write(slot)

    def _write(self, slot: int) -> None:
        prepare(self._state.slots[slot], self._rows[slot]).enqueue()
