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
from reprise.kernels.mixture.layout import MAX_NEAR
from reprise.kernels.mixture.near_rows import NearRows, near_rows, warm_up
from reprise.kernels.mixture.state import (
    MIXTURE_FIELDS,
    NEAR_VERSION,
    NUM_NEAR,
    SALT,
    MixtureState,
)
from reprise.kernels.mixture.state import NEAR_LENGTH as MIXTURE_NEAR_LENGTH
from reprise.spec.api.near_answer import NearAnswer
from reprise.spec.batching.request import select_near

_NO_TOKENS = np.zeros(0, np.int32)


class SlotRows:
    """Writes the rows of slots, which `send` sends; the thread that launches steps only.

    A request holds one slot until it ends or is preempted, and its near answers come with it when
    it goes on in another one.

    Args:
        state: what is drafted from.
        mixture: what is drafted from beside it, if the mixture drafts.
    """

    def __init__(self, state: DraftState, mixture: MixtureState | None = None) -> None:
        self._state = state
        self._mixture = mixture
        self._mixture_rows = np.zeros((state.num_slots, MIXTURE_FIELDS), np.int32)
        self._prompts: dict[str, NDArray[np.int32]] = {}
        self._num_attached = 0
        self._rows = np.zeros((state.num_slots, SLOT_FIELDS), np.int32)
        self._rows[:, CORPUS_ROW] = -1
        self._are_sent = True
        self._slots: dict[str, int | None] = {}  # None: preempted
        self._near: dict[str, NearRows] = {}
        self._num_requests = 0
        self.attached: dict[str, Sequence[NearAnswer]] = {}
        """By request: what it was given, if the mixture drafts."""
        self.nearest: dict[str, str] = {}
        """By request: the id of the answer that is nearest to it."""
        if mixture is not None:
            warm_up()

    def clear(self, slots: Sequence[int]) -> None:
        """Have nothing drafted in these slots but from the context, whatever was there before."""
        self._rows[slots] = 0
        self._rows[slots, CORPUS_ROW] = -1
        self._mixture_rows[slots] = 0
        for slot in slots:
            self._num_requests += 1
            self._rows[slot, GENERATION] = self._num_requests
        self._are_sent = False

    def assign(
        self,
        request_id: str,
        slot: int,
        *,
        num_prompt_tokens: int,
        corpus_row: int,
        prompt_token_ids: Sequence[int] | NDArray[np.int32] | None = None,
        salt: int = 0,
    ) -> None:
        """Give a slot that is cleared to a request; `salt`: 32 bits, of its namespace."""
        row = self._rows[slot]
        row[ANSWER_BEGIN], row[CORPUS_ROW] = num_prompt_tokens, corpus_row
        self._mixture_rows[slot, SALT] = np.uint32(salt).astype(np.int32)
        if prompt_token_ids is not None:
            self._prompts[request_id] = np.asarray(prompt_token_ids, np.int32)
        self._slots[request_id] = slot
        self._are_sent = False
        if request_id in self._near:
            self._write_near(slot, self._near[request_id])

    def attach(self, request_id: str, near_answers: Sequence[NearAnswer]) -> None:
        """Give a request near answers to draft from; an unknown id is ignored."""
        if request_id not in self._slots:
            return
        chosen = select_near(near_answers, MAX_NEAR)
        rows = self._lay_out(request_id, chosen)
        self._near[request_id] = rows
        if self._mixture is not None:
            self.attached[request_id] = chosen
        if chosen:
            self.nearest[request_id] = chosen[0].answer_id
        if (slot := self._slots[request_id]) is not None:
            self._write_near(slot, rows)

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
        self._prompts.pop(request_id, None)
        self.attached.pop(request_id, None)
        self.nearest.pop(request_id, None)

    def send(self) -> None:
        """Have what is launched next read the rows as they are now."""
        if self._are_sent:
            return
        prepare(self._state.slots, self._rows).enqueue()
        if self._mixture is not None:
            prepare(self._mixture.slots, self._mixture_rows).enqueue()
        self._are_sent = True

    def _lay_out(self, request_id: str, chosen: Sequence[NearAnswer]) -> NearRows:
        room = self._state.near_token_ids.shape[1]
        if self._mixture is None:
            answers = [answer.response_token_ids for answer in chosen]
            return NearRows(near_row(answers, max_near_tokens=room), _NO_TOKENS, _NO_TOKENS)
        return near_rows(
            [answer.response_token_ids for answer in chosen],
            [answer.prompt_token_ids for answer in chosen],
            [answer.similarity for answer in chosen],
            [answer.clause for answer in chosen],
            own_prompt=self._prompts.get(request_id, _NO_TOKENS),
            max_near_tokens=room,
        )

    def _write_near(self, slot: int, rows: NearRows) -> None:
        length, number = len(rows.token_ids), len(rows.info)
        uploads = []
        if length:
            uploads.append(prepare(self._state.near_token_ids[slot, :length], rows.token_ids))
            if self._mixture is not None:
                uploads.append(prepare(self._mixture.near_tags[slot, :length], rows.tags))
                uploads.append(prepare(self._mixture.near_info[slot, :number], rows.info))
        for upload in uploads:
            upload.enqueue()
        # The length last: what lies beyond it is never read.
        self._num_attached += 1
        self._rows[slot, NEAR_LENGTH] = length
        row = self._mixture_rows[slot]
        row[MIXTURE_NEAR_LENGTH], row[NUM_NEAR] = length, number
        row[NEAR_VERSION] = self._num_attached
        self._are_sent = False
