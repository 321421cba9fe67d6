# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Draft look-up in Triton: a program per request compares every position of its near answers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.lookup import MAX_MATCH

BLOCK = 1024
"""Positions of an answer that are compared at a time."""


@triton.jit(do_not_specialize=["tail_length", "max_draft", "min_match"])
def lookup_kernel(
    drafts_ptr,  # [batch, max_draft] int32: out
    matches_ptr,  # [batch] int32: out
    tail_ptr,  # [batch, tail] int32
    answer_ptr,  # [num_answer_tokens] int32
    answer_offsets_ptr,  # [num_answers + 1] int64
    request_offsets_ptr,  # [batch + 1] int32
    num_wanted_ptr,  # [batch] int32
    tail_length,
    max_draft,
    min_match,
    MAX_MATCH: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    request = tl.program_id(0)
    wanted = tl.minimum(tl.load(num_wanted_ptr + request), max_draft)
    tail_end_ptr = tail_ptr + (request + 1) * tail_length
    best_match = min_match - 1
    best_start = tl.zeros([], tl.int64)
    best_end = tl.zeros([], tl.int64)
    first = tl.load(request_offsets_ptr + request)
    behind = tl.load(request_offsets_ptr + request + 1)
    for number in range(first, behind):
        start = tl.load(answer_offsets_ptr + number)
        end = tl.load(answer_offsets_ptr + number + 1)
        for block in range(start + 1, end, BLOCK):
            position = block + tl.arange(0, BLOCK)
            match = tl.zeros([BLOCK], tl.int32)
            for back in tl.static_range(1, MAX_MATCH + 1):
                if back <= tail_length:
                    token = tl.load(tail_end_ptr - back)
                    other = tl.load(
                        answer_ptr + position - back,
                        mask=(position - back >= start) & (position < end),
                        other=-2,
                    )
                    # Only a match that is unbroken so far goes on.
                    equal = tl.where(token >= 0, other, -2) == token
                    match += tl.where(equal & (match == back - 1), 1, 0)
            longest = tl.max(match, axis=0)
            # Blocks run forward, so an equally long match in a later block of the same answer is
            # more recent and wins; one in a later, less similar answer does not.
            recent = (longest == best_match) & (best_start > start) & (best_start < end)
            if (longest > best_match) | recent:
                best_match = longest
                best_start = block + tl.max(
                    tl.where(match == longest, tl.arange(0, BLOCK), 0), axis=0
                ).to(tl.int64)
                best_end = end
    index = tl.arange(0, WIDTH)
    inside = (index < wanted) & (best_start + index < best_end)
    draft = tl.load(answer_ptr + best_start + index, mask=inside, other=-1)
    tl.store(drafts_ptr + request * max_draft + index, draft, mask=index < max_draft)
    found = (wanted > 0) & (best_end > 0)
    tl.store(matches_ptr + request, tl.where(found, best_match, 0))


def lookup_drafts_triton(
    tail_token_ids: torch.Tensor,  # [batch, tail]
    answer_token_ids: torch.Tensor,  # [num_answer_tokens]
    answer_offsets: torch.Tensor,  # [num_answers + 1]
    request_offsets: torch.Tensor,  # [batch + 1]
    num_wanted: torch.Tensor,  # [batch]
    *,
    max_draft: int,
    min_match: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `lookup_drafts`; one launch."""
    batch, tail_length = tail_token_ids.shape
    device = tail_token_ids.device
    drafts = torch.empty((batch, max_draft), dtype=torch.int32, device=device)
    matches = torch.empty(batch, dtype=torch.int32, device=device)
    with torch.cuda.device_of(tail_token_ids):
        lookup_kernel[(batch,)](
            drafts, matches, tail_token_ids.contiguous(), answer_token_ids.contiguous(),
            answer_offsets.contiguous(), request_offsets.contiguous(), num_wanted.contiguous(),
            tail_length, max_draft, min_match,
            MAX_MATCH=MAX_MATCH, WIDTH=triton.next_power_of_2(max_draft), BLOCK=BLOCK,
            num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
    return drafts, matches
