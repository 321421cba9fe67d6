"""Which request is in which row of vLLM's input batch, and what it has emitted since last time.

vLLM's model runner V1 hands a proposer rows, not requests: rows are swapped and condensed as
requests finish, a preempted request leaves its row and comes back with its output as part of its
prefix, and a prompt prefilled in chunks shows up before it has emitted anything.

The request ids come with the patches of `Feature.REQUESTS`. A step in which vLLM does not call the
proposer leaves no gap: what was emitted then is read from the batch's token table.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.core.placeholders import PLACEHOLDER

IntArray = NDArray[np.int32]


class TrackedRow(NamedTuple):
    """One decoding request, as of this step."""

    row: int
    """Its row in the batch."""
    request_id: str
    prompt_token_ids: IntArray | None
    """[prompt] int32 on first sight (a view into the batch), None afterwards."""
    emitted_token_ids: list[int]
    """[n >= 0], new since the last call."""
    num_tokens: int
    """Prompt and output so far."""


class RowTracker:
    """Follows requests by their ids."""

    def __init__(self) -> None:
        self._num_seen: dict[str, int] = {}
        self._req_ids: Sequence[str] = ()
        self._num_prompt_tokens: IntArray = np.empty(0, np.int32)
        self._settled: list[str] | None = None

    @property
    def is_settled(self) -> bool:
        """Return whether the rows are those of the last update, all decoding then: so
        what they emit may wait for the next update."""
        return self._req_ids == self._settled

    @property
    def num_requests(self) -> int:
        """Return the number of rows of the batch."""
        return len(self._req_ids)

    def unseen(self, request_id: str, num_tokens: int) -> int:
        """Count those of a request's `num_tokens` that no update has seen."""
        return num_tokens - self._num_seen.get(request_id, num_tokens)

    def name_rows(self, req_ids: Sequence[str], num_prompt_tokens: IntArray) -> None:
        """Set the batch's request ids [num_reqs] and prompt lengths [max_num_reqs] of this step."""
        self._req_ids = req_ids
        self._num_prompt_tokens = num_prompt_tokens

    def forget_rows(self) -> None:
        """Forget the rows until they are named again: others may be in their places by then."""
        self._req_ids = ()

    def forget(self, request_id: str) -> None:
        """Forget a request that ended; its id may be used again for another."""
        self._num_seen.pop(request_id, None)
        self._settled = None

    def update(
        self,
        sampled_token_ids: Sequence[list[int]],  # [num_reqs], empty: still prefilling
        num_tokens_no_spec: IntArray,  # [max_num_reqs] int32, prompt and output so far
        token_ids_cpu: IntArray,  # [max_num_reqs, max_model_len] int32
    ) -> list[TrackedRow]:
        """Return the rows that decode, with what each emitted since it was last seen."""
        rows = []
        num_seen = self._num_seen
        counts = num_tokens_no_spec[: len(sampled_token_ids)].tolist()
        for row, (request_id, emitted, num_tokens) in enumerate(
            zip(self._req_ids, sampled_token_ids, counts, strict=False)
        ):
            if not emitted:
                continue
            seen = num_seen.get(request_id)
            prompt = None
            # Fewer tokens than were seen: vLLM took back output that it could not keep.
            if seen is None or seen > num_tokens:
                seen = int(self._num_prompt_tokens[row])
                prompt = token_ids_cpu[row, :seen]
            if num_tokens - seen != len(emitted):  # steps went by that were not looked at
                emitted = token_ids_cpu[row, seen:num_tokens].tolist()
                if PLACEHOLDER in emitted:
                    continue  # seen once all are known
            rows.append(TrackedRow(row, request_id, prompt, emitted, num_tokens))
        # Only now: had a row failed, none would have been seen.
        num_seen.update((row.request_id, row.num_tokens) for row in rows)
        all_decode = len(rows) == len(self._req_ids)
        self._settled = [row.request_id for row in rows] if all_decode else None
        return rows
