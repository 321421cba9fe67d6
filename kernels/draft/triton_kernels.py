# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Drafting in Triton: one launch with a program per request, and a second, tiny one for the counts.

1. `draft_kernel`: counts what the slot's last copies had right, finds each source's longest match,
   takes the best source, and keeps all copies for the next time.
2. `fold_kernel`, one program: adds the new counts of all requests to the tables. New counts are
   integers added atomically, so that the order of programs does not matter: ranks that draft
   independently go on having the same tables, and therefore the same drafts.

Memory traffic of a program, in bytes: 4 for each token of the context, of its near answers and of
the corpus's recent answers, read once, and 4 to 64 for each occurrence of the last token among
them; in the suffix array log17(entries) rounds of 512 probes, each of 4 and up to 64 in one or two
sectors of 32, so about 50 KB a round, most of it the same for all programs and thus from the L2
cache; 512 entries and tokens to vote, 32 KB; the copies read and written, 8 * 4 * K. With 8,192
tokens of context, 8,192 of near answers, 4,096 recent ones and a million sorted, 360 KB; for 32
requests 12 MB, which is 2.5 us of an H200's bandwidth: it is latency that counts, 16 dependent
loads of the search and 10 blocks of 2,048 tokens, one after the other.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.draft import constants
from reprise.kernels.draft import state as layout
from reprise.kernels.draft.state import DraftState
from reprise.kernels.draft.triton_search import commonest_longest, scan

CONTEXT = tl.constexpr(constants.CONTEXT)
NEAR_ANSWER = tl.constexpr(constants.NEAR_ANSWER)
CORPUS = tl.constexpr(constants.CORPUS)
RECENT = tl.constexpr(constants.RECENT)
NUM_SOURCES = tl.constexpr(constants.NUM_SOURCES)
MATCH_BUCKETS = tl.constexpr(constants.MATCH_BUCKETS)
OFFSETS = tl.constexpr(constants.OFFSETS)
MAX_TRIES = tl.constexpr(constants.MAX_TRIES)
GENERATION = tl.constexpr(constants.GENERATION)
ANSWER_BEGIN = tl.constexpr(constants.ANSWER_BEGIN)
NEAR_LENGTH = tl.constexpr(constants.NEAR_LENGTH)
CORPUS_ROW = tl.constexpr(constants.CORPUS_ROW)
SLOT_FIELDS = tl.constexpr(constants.SLOT_FIELDS)
TEXT_BEGIN = tl.constexpr(constants.TEXT_BEGIN)
TEXT_LENGTH = tl.constexpr(constants.TEXT_LENGTH)
ORDER_BEGIN = tl.constexpr(constants.ORDER_BEGIN)
ORDER_LENGTH = tl.constexpr(constants.ORDER_LENGTH)
RECENT_BEGIN = tl.constexpr(constants.RECENT_BEGIN)
CORPUS_FIELDS = tl.constexpr(constants.CORPUS_FIELDS)
PENDING_GENERATION = tl.constexpr(layout.PENDING_GENERATION)
PENDING_LENGTH = tl.constexpr(layout.PENDING_LENGTH)
PENDING_SOURCE = tl.constexpr(layout.PENDING_SOURCE)
PENDING_BUCKETS = tl.constexpr(layout.PENDING_BUCKETS)
PENDING_FIELDS = tl.constexpr(layout.PENDING_FIELDS)

BLOCK = 2048
"""Tokens that are scanned at a time."""
NUM_WARPS = 8


@triton.jit
def _bucket(match):
    """See `constants.match_bucket`."""
    more = (match >= 5).to(tl.int32) + (match >= 7).to(tl.int32) + (match >= 9).to(tl.int32)
    return tl.minimum(match, 4) + more + (match >= 13).to(tl.int32) + (match >= 16).to(tl.int32)


@triton.jit
def _learn(
    pending_ptr,  # [PENDING_FIELDS]: the slot's
    pending_token_ids_ptr,  # [NUM_SOURCES, max_draft]: the slot's
    new_hits_ptr,
    new_totals_ptr,
    context_ptr,
    length,
    generation,
    max_draft,
    WIDTH: tl.constexpr,
):
    """Count what the slot's last copies had right of the tokens since."""
    offset = tl.arange(0, WIDTH)
    before = tl.load(pending_ptr + PENDING_LENGTH)
    given = tl.load(pending_ptr + PENDING_SOURCE)
    emitted = tl.where(tl.load(pending_ptr + PENDING_GENERATION) == generation, length - before, 0)
    true = tl.load(context_ptr + before + offset, mask=offset < emitted, other=-1)
    for source in tl.static_range(NUM_SOURCES):
        copied = tl.load(
            pending_token_ids_ptr + source * max_draft + offset, mask=offset < max_draft, other=-1
        )
        known = (copied >= 0) & (offset < emitted)
        wrong = tl.min(tl.where(known & (copied != true), offset, WIDTH), axis=0)
        tried = known & (offset <= wrong)
        right = known & (offset < wrong)
        bucket = tl.load(pending_ptr + PENDING_BUCKETS + source)
        cell = (source * MATCH_BUCKETS + bucket) * OFFSETS + tl.minimum(offset, OFFSETS - 1)
        tl.atomic_add(new_hits_ptr + 2 * cell, tried.to(tl.int32), mask=tried, sem="relaxed")
        tl.atomic_add(new_hits_ptr + 2 * cell + 1, right.to(tl.int32), mask=right, sem="relaxed")
        if source == given:
            total = new_totals_ptr + 2 * source
            tl.atomic_add(total, tl.sum(tried.to(tl.int32), axis=0), sem="relaxed")
            tl.atomic_add(total + 1, tl.sum(right.to(tl.int32), axis=0), sem="relaxed")


@triton.jit
def _copied(source_ptr, at, until, offset, room, WIDTH: tl.constexpr):
    """Tokens of a source at these indices, before its end, the room and the first mark; then -1."""
    token = tl.load(source_ptr + at, mask=(at < until) & (offset < room), other=-1)
    end = tl.min(tl.where(token < 0, offset, WIDTH), axis=0)
    return tl.where(offset < end, token, -1)


@triton.jit
def _keep(
    copied,  # [WIDTH] int32: the copy, then -1
    match,
    best,  # highest chance so far
    best_source,
    best_copy,  # [WIDTH] int32
    best_bucket,
    pending_ptr,
    pending_token_ids_ptr,
    hit_chances_ptr,
    offset,  # [WIDTH]
    max_draft,
    SOURCE: tl.constexpr,
):
    """Keep a source's copy, to learn from, and return the best copy so far."""
    bucket = _bucket(match)
    tl.store(pending_ptr + PENDING_BUCKETS + SOURCE, bucket)
    tl.store(pending_token_ids_ptr + SOURCE * max_draft + offset, copied, mask=offset < max_draft)
    chance = tl.load(hit_chances_ptr + (SOURCE * MATCH_BUCKETS + bucket) * OFFSETS)
    chance = tl.where(tl.max(copied, axis=0) >= 0, chance, 0.0)
    better = chance > best
    best_copy = tl.where(better, copied, best_copy)
    best_source = tl.where(better, SOURCE, best_source)
    best_bucket = tl.where(better, bucket, best_bucket)
    return tl.maximum(chance, best), best_source, best_copy, best_bucket


_SIZES = [
    "max_model_len", "context_stride", "max_near_tokens", "max_draft", "num_drafts",
    "drafts_stride", "chances_stride",
]  # fmt: skip
_VIEWS = [
    "drafts_ptr", "chances_ptr", "all_token_ids_ptr", "total_len_ptr", "idx_mapping_ptr",
    "num_sampled_ptr",
]  # fmt: skip


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VIEWS)
def draft_kernel(
    drafts_ptr,  # [num_reqs, num_drafts] int64: out
    chances_ptr,  # [num_reqs, num_drafts] float32: out
    all_token_ids_ptr,  # [num_slots, max_model_len] int32
    total_len_ptr,  # [num_slots] int32
    idx_mapping_ptr,  # [num_reqs] int32 or int64
    num_sampled_ptr,  # [num_reqs] int32
    slots_ptr,  # [num_slots, SLOT_FIELDS] int32
    near_token_ids_ptr,  # [num_slots, max_near_tokens] int32
    corpora_ptr,  # [num_corpora, CORPUS_FIELDS] int32
    arena_ptr,  # [arena_tokens] int32
    hit_chances_ptr,  # [NUM_SOURCES, MATCH_BUCKETS, OFFSETS] float32
    new_hits_ptr,  # [NUM_SOURCES, MATCH_BUCKETS, OFFSETS, 2] int32: in and out
    new_totals_ptr,  # [NUM_SOURCES, 2] int32: in and out
    pending_ptr,  # [num_slots, PENDING_FIELDS] int32: in and out
    pending_token_ids_ptr,  # [num_slots, NUM_SOURCES, max_draft] int32: in and out
    max_model_len,
    context_stride,
    max_near_tokens,
    max_draft,
    num_drafts,
    drafts_stride,
    chances_stride,
    WIDTH: tl.constexpr,  # max_draft, rounded up
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, WIDTH)
    slot = tl.load(idx_mapping_ptr + row).to(tl.int64)
    length = tl.load(total_len_ptr + slot, mask=slot >= 0, other=0)
    context_ptr = all_token_ids_ptr + slot * context_stride
    last = tl.load(context_ptr + length - 1, mask=length > 0, other=0)
    source = tl.full([], -1, tl.int32)
    bucket = tl.full([], 0, tl.int32)
    copy = tl.full([WIDTH], -1, tl.int32)
    if (tl.load(num_sampled_ptr + row) > 0) & (length > 0):
        slots_ptr += slot * SLOT_FIELDS
        pending_ptr += slot * PENDING_FIELDS
        pending_token_ids_ptr += slot * NUM_SOURCES * max_draft
        near_ptr = near_token_ids_ptr + slot * max_near_tokens
        generation = tl.load(slots_ptr + GENERATION)
        begin = tl.minimum(tl.load(slots_ptr + ANSWER_BEGIN), length)
        near_length = tl.load(slots_ptr + NEAR_LENGTH)
        corpus_row = tl.load(slots_ptr + CORPUS_ROW).to(tl.int64)
        room = tl.minimum(num_drafts, max_model_len - length)
        _learn(
            pending_ptr, pending_token_ids_ptr, new_hits_ptr, new_totals_ptr,
            context_ptr, length, generation, max_draft, WIDTH,
        )  # fmt: skip
        # No thread may write what another has yet to read.
        tl.debug_barrier()
        best = tl.full([], 0.0, tl.float32)

        match, place = scan(
            context_ptr, length, begin, context_ptr, length, begin, False, True, BLOCK
        )
        in_answer = place > begin
        period = tl.where(in_answer, tl.maximum(length - place, 1), WIDTH)
        at = place + offset % period
        until = tl.where(match > 0, tl.where(in_answer, length, begin), 0)
        copied = _copied(context_ptr, at, until, offset, room, WIDTH)
        best, source, copy, bucket = _keep(
            copied, match, best, source, copy, bucket,
            pending_ptr, pending_token_ids_ptr, hit_chances_ptr, offset, max_draft, CONTEXT,
        )  # fmt: skip

        match, place = scan(
            near_ptr, near_length, 0, context_ptr, length, begin, True, False, BLOCK
        )
        until = tl.where(match > 0, near_length, 0)
        copied = _copied(near_ptr, place + offset, until, offset, room, WIDTH)
        best, source, copy, bucket = _keep(
            copied, match, best, source, copy, bucket,
            pending_ptr, pending_token_ids_ptr, hit_chances_ptr, offset, max_draft, NEAR_ANSWER,
        )  # fmt: skip

        has_corpus = corpus_row >= 0
        corpora_ptr += corpus_row * CORPUS_FIELDS
        text_ptr = arena_ptr + tl.load(corpora_ptr + TEXT_BEGIN, mask=has_corpus, other=0)
        text_length = tl.load(corpora_ptr + TEXT_LENGTH, mask=has_corpus, other=0)
        order_ptr = arena_ptr + tl.load(corpora_ptr + ORDER_BEGIN, mask=has_corpus, other=0)
        order_length = tl.load(corpora_ptr + ORDER_LENGTH, mask=has_corpus, other=0)
        recent = tl.load(corpora_ptr + RECENT_BEGIN, mask=has_corpus, other=0)
        match, place = commonest_longest(
            text_ptr, text_length, order_ptr, order_length, context_ptr, length, begin
        )
        until = tl.where(match > 0, text_length, 0)
        copied = _copied(text_ptr, place + offset, until, offset, room, WIDTH)
        best, source, copy, bucket = _keep(
            copied, match, best, source, copy, bucket,
            pending_ptr, pending_token_ids_ptr, hit_chances_ptr, offset, max_draft, CORPUS,
        )  # fmt: skip

        text_ptr += recent
        recent_length = text_length - recent
        match, place = scan(
            text_ptr, recent_length, 0, context_ptr, length, begin, True, True, BLOCK
        )
        until = tl.where(match > 0, recent_length, 0)
        copied = _copied(text_ptr, place + offset, until, offset, room, WIDTH)
        best, source, copy, bucket = _keep(
            copied, match, best, source, copy, bucket,
            pending_ptr, pending_token_ids_ptr, hit_chances_ptr, offset, max_draft, RECENT,
        )  # fmt: skip

        tl.store(pending_ptr + PENDING_GENERATION, generation)
        tl.store(pending_ptr + PENDING_LENGTH, length)
        tl.store(pending_ptr + PENDING_SOURCE, source)
    cell = (tl.maximum(source, 0) * MATCH_BUCKETS + bucket) * OFFSETS
    chance = tl.load(
        hit_chances_ptr + cell + tl.minimum(offset, OFFSETS - 1), mask=copy >= 0, other=0.0
    )
    token = tl.where(copy >= 0, copy, last).to(tl.int64)
    tl.store(drafts_ptr + row * drafts_stride + offset, token, mask=offset < num_drafts)
    tl.store(chances_ptr + row * chances_stride + offset, chance, mask=offset < num_drafts)


@triton.jit
def fold_kernel(
    hit_counts_ptr,  # [cells, 2] float32: in and out
    hit_chances_ptr,  # [cells] float32: out
    new_hits_ptr,  # [cells, 2] int32: in, then 0
    totals_ptr,  # [NUM_SOURCES, 2] int64: in and out
    new_totals_ptr,  # [NUM_SOURCES, 2] int32: in, then 0
    CELLS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """See `reference.fold_hits_torch`."""
    cell = tl.arange(0, PADDED)
    real = cell < CELLS
    tries = tl.load(hit_counts_ptr + 2 * cell, mask=real, other=1.0)
    hits = tl.load(hit_counts_ptr + 2 * cell + 1, mask=real, other=0.0)
    tries += tl.load(new_hits_ptr + 2 * cell, mask=real, other=0).to(tl.float32)
    hits += tl.load(new_hits_ptr + 2 * cell + 1, mask=real, other=0).to(tl.float32)
    kept = tl.div_rn(tl.full([PADDED], MAX_TRIES, tl.float32), tl.maximum(tries, MAX_TRIES))
    tries *= kept
    hits *= kept
    tl.store(hit_counts_ptr + 2 * cell, tries, mask=real)
    tl.store(hit_counts_ptr + 2 * cell + 1, hits, mask=real)
    tl.store(hit_chances_ptr + cell, tl.div_rn(hits, tries), mask=real)
    total = tl.arange(0, 2 * NUM_SOURCES)
    sums = tl.load(totals_ptr + total) + tl.load(new_totals_ptr + total)
    tl.store(totals_ptr + total, sums)
    # No thread may clear what another has yet to read.
    tl.debug_barrier()
    tl.store(new_hits_ptr + 2 * cell, tl.zeros([PADDED], tl.int32), mask=real)
    tl.store(new_hits_ptr + 2 * cell + 1, tl.zeros([PADDED], tl.int32), mask=real)
    tl.store(new_totals_ptr + total, tl.zeros([2 * NUM_SOURCES], tl.int32))


def draft_tokens_triton(
    state: DraftState,
    *,
    all_token_ids: torch.Tensor,  # [num_slots, max_model_len] int32
    total_len: torch.Tensor,  # [num_slots] int32
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64
    num_sampled: torch.Tensor,  # [num_reqs] int32
    drafts: torch.Tensor,  # [num_reqs, K] int64: out
    chances: torch.Tensor,  # [num_reqs, K] float32: out
) -> None:
    """See `draft_tokens`; two launches, whose grids depend on the number of rows alone."""
    with torch.cuda.device_of(drafts):
        draft_kernel[(idx_mapping.shape[0],)](
            drafts, chances, all_token_ids, total_len, idx_mapping, num_sampled,
            state.slots, state.near_token_ids, state.corpora, state.arena,
            state.hit_chances, state.new_hits, state.new_totals,
            state.pending, state.pending_token_ids,
            all_token_ids.shape[1], all_token_ids.stride(0), state.near_token_ids.shape[1],
            state.max_draft, drafts.shape[1], drafts.stride(0), chances.stride(0),
            WIDTH=triton.next_power_of_2(state.max_draft), BLOCK=BLOCK,
            num_warps=NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
        cells = state.hit_chances.numel()
        fold_kernel[(1,)](
            state.hit_counts, state.hit_chances, state.new_hits, state.totals, state.new_totals,
            CELLS=cells, PADDED=triton.next_power_of_2(cells), num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
