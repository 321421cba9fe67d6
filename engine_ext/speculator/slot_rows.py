"""What the device knows of the requests in its slots: whose they are, and their near answers.

A step sends near answers as they come, and then, where it has changed any, the rows of all slots:
they are small, and each write takes its time in the thread that launches steps.
"""

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
from reprise.spec.api.near_answer import NearAnswer
from reprise.spec.batching.request import select_near


class SlotRows:
    """Writes the rows of slots, which `send` sends; the thread that launches steps only.

    A request holds one slot until it ends or is preempted, and its near answers come with it when
    it goes on in another one.

    Args:
        state: what is drafted from.
        max_near: near answers of a request at most.
    """

    def __init__(self, state: DraftState, *, max_near: int) -> None:
        self._state = state
        self._max_near = max_near
        self._rows = np.zeros((state.num_slots, SLOT_FIELDS), np.int32)
        self._rows[:, CORPUS_ROW] = -1
        self._are_sent = True
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
        self._are_sent = False

    def assign(
        self, request_id: str, slot: int, *, num_prompt_tokens: int, corpus_row: int
    ) -> None:
        """Give a slot that is cleared to a request."""
        row = self._rows[slot]
        row[ANSWER_BEGIN], row[CORPUS_ROW] = num_prompt_tokens, corpus_row
        self._slots[request_id] = slot
        self._are_sent = False
        if request_id in self._near:
            self._write_near(slot, self._near[request_id])

    def attach(self, request_id: str, near_answers: Sequence[NearAnswer]) -> None:
        """Give a request near answers to draft from; an unknown id is ignored."""
        if request_id not in self._slots:
            return
        chosen = select_near(near_answers, self._max_near)
        row = self._near[request_id] = near_row(
            [answer.response_token_ids for answer in chosen],
            max_near_tokens=self._state.near_token_ids.shape[1],
        )
        if chosen:
            self.nearest[request_id] = chosen[0].answer_id
        if (slot := self._slots[request_id]) is not None:
            self._write_near(slot, row)

    def set_corpus_row(self, request_id: str, corpus_row: int) -> None:
        """Have a request drafted for from a corpus that has only come to be."""
        slot = self._slots.get(request_id)
        if slot is not None and self._rows[slot, CORPUS_ROW] != corpus_row:
            self._rows[slot, CORPUS_ROW] = corpus_row
            self._are_sent = False

    def leave(self, request_id: str) -> None:
        """Take a request out of its slot for the time being."""
        if request_id in self._slots:
            self._slots[request_id] = None

    def end(self, request_id: str) -> None:
        """Forget a request."""
        self._slots.pop(request_id, None)
        self._near.pop(request_id, None)
        self.nearest.pop(request_id, None)

    def send(self) -> None:
        """Have what is launched next read the rows as they are now."""
        if self._are_sent:
            return
        prepare(self._state.slots, self._rows).enqueue()
        self._are_sent = True

    def _write_near(self, slot: int, row: NDArray[np.int32]) -> None:
        if len(row):
            prepare(self._state.near_token_ids[slot, : len(row)], row).enqueue()
        # The length last: what lies beyond it is never read.
        self._rows[slot, NEAR_LENGTH] = len(row)
        self._are_sent = False
