"""Counts on the device what became of each slot's drafts, for reports by request."""

import numpy as np
import torch
from numpy.typing import NDArray

from reprise.kernels.draft.constants import (
    ACCEPTED,
    CONTEXT,
    CORPUS,
    COUNT_FIELDS,
    DRAFTED,
    EMITTED,
    NEAR_ANSWER,
    RECENT,
    STEPS,
)
from reprise.kernels.draft.state import DraftState
from reprise.kernels.draft.step_counts import count_step
from reprise.spec.api.stats import RequestStats, SourceStats

_KINDS = {"context": (CONTEXT,), "near_answer": (NEAR_ANSWER,), "corpus": (CORPUS, RECENT)}


class SlotCounts:
    """Verification steps, tokens emitted, drafted and accepted of each slot's request."""

    def __init__(self, state: DraftState) -> None:
        self._state = state
        self.counts = torch.zeros(
            (state.num_slots, COUNT_FIELDS), dtype=torch.int32, device=state.slots.device
        )
        """[num_slots, COUNT_FIELDS] int32."""

    def clear(self, slot: int) -> None:
        """Begin with another request."""
        self.counts[slot].zero_()

    def add_step(
        self,
        idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64
        num_sampled: torch.Tensor,  # [num_reqs] int32
        num_rejected: torch.Tensor,  # [num_reqs] int32
    ) -> None:
        """Count a step, before its drafts are made."""
        count_step(
            self._state,
            self.counts,
            idx_mapping=idx_mapping,
            num_sampled=num_sampled,
            num_rejected=num_rejected,
        )


def stats_of(counts: NDArray[np.int32]) -> RequestStats:
    """Convert a slot's counts, [fields] int32, to those that are reported."""
    drafted, accepted = counts[DRAFTED:ACCEPTED].tolist(), counts[ACCEPTED:].tolist()
    by_source = {
        source: SourceStats(
            drafted=sum(drafted[kind] for kind in kinds),
            accepted=sum(accepted[kind] for kind in kinds),
        )
        for source, kinds in _KINDS.items()
    }
    return RequestStats(
        steps=int(counts[STEPS]),
        emitted=int(counts[EMITTED]),
        drafted=sum(drafted),
        accepted=sum(accepted),
        by_source=by_source,
    )
