"""What became of each slot's drafts, counted on the device in one launch a step."""

from __future__ import annotations

import torch

from reprise.kernels.draft import Backend
from reprise.kernels.draft.constants import GENERATION, NUM_SOURCES
from reprise.kernels.draft.state import (
    PENDING_COPY,
    PENDING_GENERATION,
    PENDING_SOURCE,
    DraftState,
)


def count_step(
    state: DraftState,
    counts: torch.Tensor,  # [num_slots, COUNT_FIELDS] int32: in and out
    *,
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64: the slot of each row, none twice
    num_sampled: torch.Tensor,  # [num_reqs] int32
    num_rejected: torch.Tensor,  # [num_reqs] int32
    backend: Backend = "auto",
) -> None:
    """Count a step, before its drafts are made: what is pending then is what it has verified.

    Drafts may be longer than the slots that were scheduled for them. The host never waits, and
    nothing is allocated.

    Args:
        backend: `auto` takes Triton for CUDA tensors, torch for all others.
    """
    if not idx_mapping.shape[0]:
        return
    if backend == "triton" or (backend == "auto" and counts.is_cuda):
        from reprise.kernels.draft.triton_counts import count_step_triton as run
    else:
        run = count_step_torch
    run(state, counts, idx_mapping, num_sampled, num_rejected)


def count_step_torch(
    state: DraftState,
    counts: torch.Tensor,  # [num_slots, COUNT_FIELDS] int32: in and out
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64
    num_sampled: torch.Tensor,  # [num_reqs] int32
    num_rejected: torch.Tensor,  # [num_reqs] int32
) -> None:
    """Define `count_step`."""
    slots = idx_mapping.long()
    pending = state.pending[slots]
    copy, source = pending[:, PENDING_COPY], pending[:, PENDING_SOURCE]
    is_own = pending[:, PENDING_GENERATION] == state.slots[slots, GENERATION]
    copies = state.pending_token_ids[slots, copy.clamp(min=0).long()]
    verified = (num_sampled + num_rejected - 1).clamp(min=0)
    drafted = torch.minimum((copies >= 0).sum(1), verified) * (is_own & (copy >= 0))
    accepted = torch.minimum((num_sampled - 1).clamp(min=0), drafted)
    sources = torch.arange(NUM_SOURCES, dtype=torch.int32, device=counts.device)
    of_source = source[:, None] == sources
    step = torch.cat(
        (
            ((verified > 0) & is_own)[:, None],
            num_sampled[:, None],
            drafted[:, None] * of_source,
            accepted[:, None] * of_source,
        ),
        dim=1,
    )
    counts.index_add_(0, slots, step.to(torch.int32))
