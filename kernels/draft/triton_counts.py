# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Counting what became of drafts in Triton: one launch with a program per request.

As operations of torch it was some 30 launches a step, which took an H200 75 us; and the host, which
has to send them, is what steps wait for there.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.draft import constants
from reprise.kernels.draft import state as layout
from reprise.kernels.draft.state import DraftState

NUM_COPIES = tl.constexpr(constants.NUM_COPIES)
GENERATION = tl.constexpr(constants.GENERATION)
SLOT_FIELDS = tl.constexpr(constants.SLOT_FIELDS)
PENDING_GENERATION = tl.constexpr(layout.PENDING_GENERATION)
PENDING_COPY = tl.constexpr(layout.PENDING_COPY)
PENDING_SOURCE = tl.constexpr(layout.PENDING_SOURCE)
PENDING_FIELDS = tl.constexpr(layout.PENDING_FIELDS)
STEPS = tl.constexpr(constants.STEPS)
EMITTED = tl.constexpr(constants.EMITTED)
DRAFTED = tl.constexpr(constants.DRAFTED)
ACCEPTED = tl.constexpr(constants.ACCEPTED)
COUNT_FIELDS = tl.constexpr(constants.COUNT_FIELDS)


@triton.jit
def _add(ptr, value):
    tl.store(ptr, tl.load(ptr) + value)


@triton.jit
def count_kernel(
    counts_ptr,  # [num_slots, COUNT_FIELDS] int32: in and out
    idx_mapping_ptr,  # [num_reqs] int32 or int64
    num_sampled_ptr,  # [num_reqs] int32
    num_rejected_ptr,  # [num_reqs] int32
    slots_ptr,  # [num_slots, SLOT_FIELDS] int32
    pending_ptr,  # [num_slots, PENDING_FIELDS] int32
    pending_token_ids_ptr,  # [num_slots, NUM_COPIES, max_draft] int32
    max_draft,
    WIDTH: tl.constexpr,
):
    """See `step_counts.count_step_torch`."""
    row = tl.program_id(0)
    slot = tl.load(idx_mapping_ptr + row)
    sampled = tl.load(num_sampled_ptr + row)
    rejected = tl.load(num_rejected_ptr + row)
    pending_ptr += slot * PENDING_FIELDS
    copy = tl.load(pending_ptr + PENDING_COPY)
    source = tl.load(pending_ptr + PENDING_SOURCE)
    generation = tl.load(slots_ptr + slot * SLOT_FIELDS + GENERATION)
    is_own = (tl.load(pending_ptr + PENDING_GENERATION) == generation).to(tl.int32)
    offset = tl.arange(0, WIDTH)
    begin = (slot * NUM_COPIES + tl.maximum(copy, 0)) * max_draft
    copies = tl.load(pending_token_ids_ptr + begin + offset, mask=offset < max_draft, other=-1)
    verified = tl.maximum(sampled + rejected - 1, 0)
    drafted = tl.minimum(tl.sum((copies >= 0).to(tl.int32), axis=0), verified)
    drafted *= is_own * (copy >= 0).to(tl.int32)
    accepted = tl.minimum(tl.maximum(sampled - 1, 0), drafted)
    counts_ptr += slot * COUNT_FIELDS
    _add(counts_ptr + STEPS, is_own * (verified > 0).to(tl.int32))
    _add(counts_ptr + EMITTED, sampled)
    _add(counts_ptr + DRAFTED + tl.maximum(source, 0), drafted)
    _add(counts_ptr + ACCEPTED + tl.maximum(source, 0), accepted)


def count_step_triton(
    state: DraftState,
    counts: torch.Tensor,  # [num_slots, COUNT_FIELDS] int32: in and out
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64
    num_sampled: torch.Tensor,  # [num_reqs] int32
    num_rejected: torch.Tensor,  # [num_reqs] int32
) -> None:
    """See `count_step`; one launch, whose grid is the number of rows."""
    with torch.cuda.device_of(counts):
        count_kernel[(idx_mapping.shape[0],)](
            counts, idx_mapping, num_sampled, num_rejected,
            state.slots, state.pending, state.pending_token_ids,
            state.max_draft, WIDTH=triton.next_power_of_2(state.max_draft), num_warps=1,
        )  # fmt: skip
