"""Counts on the device what became of each slot's drafts, for reports by request."""

import numpy as np
import torch
from numpy.typing import NDArray

from reprise.kernels.draft.constants import (
    CONTEXT,
    CORPUS,
    GENERATION,
    NEAR_ANSWER,
    NUM_SOURCES,
    RECENT,
)
from reprise.kernels.draft.state import PENDING_GENERATION, PENDING_SOURCE, DraftState
from reprise.spec.api.stats import RequestStats, SourceStats

_STEPS, _EMITTED, _DRAFTED = range(3)
_ACCEPTED = _DRAFTED + NUM_SOURCES
_FIELDS = _ACCEPTED + NUM_SOURCES
_KINDS = {"context": (CONTEXT,), "near_answer": (NEAR_ANSWER,), "corpus": (CORPUS, RECENT)}


class SlotCounts:
    """Verification steps, tokens emitted, drafted and accepted of each slot's request."""

    def __init__(self, state: DraftState) -> None:
        device = state.slots.device
        self._state = state
        self._sources = torch.arange(NUM_SOURCES, dtype=torch.int32, device=device)
        self.counts = torch.zeros((state.num_slots, _FIELDS), dtype=torch.int32, device=device)
        """[num_slots, fields] int32."""

    def clear(self, slot: int) -> None:
        """Begin with another request."""
        self.counts[slot].zero_()

    def add_step(
        self,
        slots: torch.Tensor,  # [num_reqs] int64
        num_sampled: torch.Tensor,  # [num_reqs] int32
        num_rejected: torch.Tensor,  # [num_reqs] int32
    ) -> None:
        """Count a step, before its drafts are made: what is pending then is what it has verified.

        Drafts may be longer than the slots that were scheduled for them.
        """
        state = self._state
        pending = state.pending[slots]
        source = pending[:, PENDING_SOURCE]
        is_own = pending[:, PENDING_GENERATION] == state.slots[slots, GENERATION]
        copies = state.pending_token_ids[slots, source.clamp(min=0).long()]
        verified = (num_sampled + num_rejected - 1).clamp(min=0)
        drafted = torch.minimum((copies >= 0).sum(1), verified) * (is_own & (source >= 0))
        accepted = torch.minimum((num_sampled - 1).clamp(min=0), drafted)
        of_source = source[:, None] == self._sources
        step = torch.cat(
            (
                ((verified > 0) & is_own)[:, None],
                num_sampled[:, None],
                drafted[:, None] * of_source,
                accepted[:, None] * of_source,
            ),
            dim=1,
        )
        self.counts.index_add_(0, slots, step.to(torch.int32))


def stats_of(counts: NDArray[np.int32]) -> RequestStats:
    """Convert a slot's counts, [fields] int32, to those that are reported."""
    drafted, accepted = counts[_DRAFTED:_ACCEPTED].tolist(), counts[_ACCEPTED:].tolist()
    by_source = {
        source: SourceStats(
            drafted=sum(drafted[kind] for kind in kinds),
            accepted=sum(accepted[kind] for kind in kinds),
        )
        for source, kinds in _KINDS.items()
    }
    return RequestStats(
        steps=int(counts[_STEPS]),
        emitted=int(counts[_EMITTED]),
        drafted=sum(drafted),
        accepted=sum(accepted),
        by_source=by_source,
    )
