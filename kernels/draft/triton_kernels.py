# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Drafting in Triton: one launch with a program per request, and a second, tiny one for the counts.

1. `draft_kernel`: counts what the slot's last copies had right, finds each source's longest match
   and the one that is voted for, drafts the copy that is worth most, and keeps all of them to learn
   from.
2. `fold_kernel`, one program: adds the new counts of all requests to the tables. New counts are
   integers added atomically, so that the order of programs does not matter: ranks that draft
   independently go on having the same tables, and therefore the same drafts.

Memory traffic of a program, in bytes: 4 for each token of the context, of its near answers and of
the corpus's recent answers, read once, and 4 to 64 for each occurrence of the last token among
them; in the suffix array log17(entries) rounds of 512 probes, each of 4 and up to 64 in one or two
sectors of 32, so about 50 KB a round, most of it the same for all programs and thus from the L2
cache; 512 entries and tokens to vote, 32 KB; 64 places that vote, and 26 tokens before each, which
were read already; the copies read and written, 10 * 4 * K. With 8,192 tokens of context, 8,192 of
near answers, 4,096 recent ones and a million sorted, 360 KB; for 32 requests 12 MB, which is 2.5 us
of an H200's bandwidth: it is latency that counts, 16 dependent loads of the search, 10 blocks of
2,048 tokens, one after the other, and three dependent loads of the vote.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.draft import constants
from reprise.kernels.draft import state as layout
from reprise.kernels.draft.state import DraftState
from reprise.kernels.draft.triton_search import commonest_longest, scan
from reprise.kernels.draft.triton_vote import vote

CONTEXT = tl.constexpr(constants.CONTEXT)
NEAR_ANSWER = tl.constexpr(constants.NEAR_ANSWER)
CORPUS = tl.constexpr(constants.CORPUS)
RECENT = tl.constexpr(constants.RECENT)
NUM_SOURCES = tl.constexpr(constants.NUM_SOURCES)
NUM_COPIES = tl.constexpr(constants.NUM_COPIES)
AGREEMENTS = tl.constexpr(constants.AGREEMENTS)
WORTH_TOKENS = tl.constexpr(constants.WORTH_TOKENS)
VOTING_PLACES = tl.constexpr(constants.VOTING_PLACES)
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
PENDING_COPY = tl.constexpr(layout.PENDING_COPY)
PENDING_SOURCE = tl.constexpr(layout.PENDING_SOURCE)
PENDING_ROWS = tl.constexpr(layout.PENDING_ROWS)
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
    pending_token_ids_ptr,  # [NUM_COPIES, max_draft]: the slot's
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
    given = tl.load(pending_ptr + PENDING_COPY)
    source = tl.load(pending_ptr + PENDING_SOURCE)
    emitted = tl.where(tl.load(pending_ptr + PENDING_GENERATION) == generation, length - before, 0)
    true = tl.load(context_ptr + before + offset, mask=offset < emitted, other=-1)
    for kind in tl.static_range(NUM_COPIES):
        copied = tl.load(
            pending_token_ids_ptr + kind * max_draft + offset, mask=offset < max_draft, other=-1
        )
        known = (copied >= 0) & (offset < emitted)
        wrong = tl.min(tl.where(known & (copied != true), offset, WIDTH), axis=0)
        tried = known & (offset <= wrong)
        right = known & (offset < wrong)
        row = kind * MATCH_BUCKETS * AGREEMENTS + tl.load(pending_ptr + PENDING_ROWS + kind)
        cell = row * OFFSETS + tl.minimum(offset, OFFSETS - 1)
        tl.atomic_add(new_hits_ptr + 2 * cell, tried.to(tl.int32), mask=tried, sem="relaxed")
        tl.atomic_add(new_hits_ptr + 2 * cell + 1, right.to(tl.int32), mask=right, sem="relaxed")
        if kind == given:
            total = new_totals_ptr + 2 * source
            tl.atomic_add(total, tl.sum(tried.to(tl.int32), axis=0), sem="relaxed")
            tl.atomic_add(total + 1, tl.sum(right.to(tl.int32), axis=0), sem="relaxed")


@triton.jit
def _copied(source_ptr, at, until, offset, room, vocab_size, WIDTH: tl.constexpr):
    """Tokens of a source at these indices, before its end, the room, the first mark and the first
    that is none of the vocabulary; then -1."""
    token = tl.load(source_ptr + at, mask=(at < until) & (offset < room), other=-1)
    end = tl.min(tl.where((token < 0) | (token >= vocab_size), offset, WIDTH), axis=0)
    return tl.where(offset < end, token, -1)


@triton.jit
def _copied_corpus(
    arena_ptr,
    corpora_ptr,
    corpus_row,  # -1: there is none
    context_ptr,
    length,
    begin,
    offset,  # [WIDTH]
    room,
    vocab_size,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Match and copy from what is sorted of a corpus, and from its recent part."""
    is_there = corpus_row >= 0
    corpora_ptr += corpus_row * CORPUS_FIELDS
    text_ptr = arena_ptr + tl.load(corpora_ptr + TEXT_BEGIN, mask=is_there, other=0)
    text_length = tl.load(corpora_ptr + TEXT_LENGTH, mask=is_there, other=0)
    order_ptr = arena_ptr + tl.load(corpora_ptr + ORDER_BEGIN, mask=is_there, other=0)
    order_length = tl.load(corpora_ptr + ORDER_LENGTH, mask=is_there, other=0)
    recent = tl.load(corpora_ptr + RECENT_BEGIN, mask=is_there, other=0)
    match, place = commonest_longest(
        text_ptr, text_length, order_ptr, order_length, context_ptr, length, begin
    )
    until = tl.where(match > 0, text_length, 0)
    copied = _copied(text_ptr, place + offset, until, offset, room, vocab_size, WIDTH)

    text_ptr += recent
    recent_length = text_length - recent
    recent_match, place, _ = scan(
        text_ptr, recent_length, 0, context_ptr, length, begin, True, True, BLOCK
    )
    until = tl.where(recent_match > 0, recent_length, 0)
    recent_copy = _copied(text_ptr, place + offset, until, offset, room, vocab_size, WIDTH)
    return match, copied, recent_match, recent_copy


@triton.jit
def _first(copied, offset):
    """A copy's first token, -1 where there is none."""
    return tl.max(tl.where(offset == 0, copied, -1), axis=0)


@triton.jit
def _copied_context(
    context_ptr, match, place, length, begin, offset, room, vocab_size, WIDTH: tl.constexpr
):
    """The copy from the prompt, to its end, or from the answer, again and again."""
    in_answer = place > begin
    period = tl.where(in_answer, tl.maximum(length - place, 1), WIDTH)
    until = tl.where(match > 0, tl.where(in_answer, length, begin), 0)
    return _copied(context_ptr, place + offset % period, until, offset, room, vocab_size, WIDTH)


@triton.jit
def _keep(
    copied,  # [WIDTH] int32: the copy, then -1
    match,
    source,
    firsts,  # of all copies
    best,  # most worth so far
    best_kind,
    best_source,
    best_row,
    best_copy,  # [WIDTH] int32
    pending_ptr,
    pending_token_ids_ptr,
    hit_worths_ptr,
    offset,  # [WIDTH]
    max_draft,
    KIND: tl.constexpr,
):
    """Keep a copy, to learn from, and return the best one so far."""
    first = firsts[KIND]
    agreement = tl.full([], 0, tl.int32)
    for other in tl.static_range(NUM_COPIES):
        if other != KIND:
            agreement += ((firsts[other] == first) & (first >= 0)).to(tl.int32)
    row = _bucket(match) * AGREEMENTS + tl.minimum(agreement, AGREEMENTS - 1)
    tl.store(pending_ptr + PENDING_ROWS + KIND, row)
    tl.store(pending_token_ids_ptr + KIND * max_draft + offset, copied, mask=offset < max_draft)
    row += KIND * MATCH_BUCKETS * AGREEMENTS
    worth = tl.where(first >= 0, tl.load(hit_worths_ptr + row), 0.0)
    better = worth > best
    best_copy = tl.where(better, copied, best_copy)
    best_kind = tl.where(better, KIND, best_kind)
    best_source = tl.where(better, source, best_source)
    best_row = tl.where(better, row, best_row)
    return tl.maximum(worth, best), best_kind, best_source, best_row, best_copy


_SIZES = [
    "max_model_len", "context_stride", "max_near_tokens", "max_draft", "num_drafts",
    "drafts_stride", "chances_stride", "vocab_size",
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
    hit_chances_ptr,  # [NUM_COPIES, MATCH_BUCKETS, AGREEMENTS, OFFSETS] float32
    hit_worths_ptr,  # [NUM_COPIES, MATCH_BUCKETS, AGREEMENTS] float32
    new_hits_ptr,  # [NUM_COPIES, MATCH_BUCKETS, AGREEMENTS, OFFSETS, 2] int32: in and out
    new_totals_ptr,  # [NUM_SOURCES, 2] int32: in and out
    pending_ptr,  # [num_slots, PENDING_FIELDS] int32: in and out
    pending_token_ids_ptr,  # [num_slots, NUM_COPIES, max_draft] int32: in and out
    voters_ptr,  # [num_slots, 2, VOTING_PLACES] int32: out
    max_model_len,
    context_stride,
    max_near_tokens,
    max_draft,
    num_drafts,
    drafts_stride,
    chances_stride,
    vocab_size,
    WIDTH: tl.constexpr,  # max_draft, rounded up
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, WIDTH)
    slot = tl.load(idx_mapping_ptr + row).to(tl.int64)
    length = tl.load(total_len_ptr + slot, mask=slot >= 0, other=0)
    context_ptr = all_token_ids_ptr + slot * context_stride
    last = tl.load(context_ptr + length - 1, mask=length > 0, other=0)
    kind = tl.full([], -1, tl.int32)
    source = tl.full([], -1, tl.int32)
    row_of_hits = tl.full([], 0, tl.int32)
    copy = tl.full([WIDTH], -1, tl.int32)
    if (tl.load(num_sampled_ptr + row) > 0) & (length > 0):
        slots_ptr += slot * SLOT_FIELDS
        pending_ptr += slot * PENDING_FIELDS
        pending_token_ids_ptr += slot * NUM_COPIES * max_draft
        voters_ptr += slot * 2 * VOTING_PLACES
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
        context_match, place, context_count = scan(
            context_ptr, length, begin, context_ptr, length, begin, False, True, BLOCK,
            voters_ptr + VOTING_PLACES,
        )  # fmt: skip
        context_copy = _copied_context(
            context_ptr, context_match, place, length, begin, offset, room, vocab_size, WIDTH
        )

        near_match, near_place, near_count = scan(
            near_ptr, near_length, 0, context_ptr, length, begin, True, False, BLOCK, voters_ptr
        )
        voted_match, place, in_context, near_place = vote(
            voters_ptr, near_ptr, near_count, near_match, near_place, context_ptr, context_count,
            length, begin,
        )  # fmt: skip
        until = tl.where(near_match > 0, near_length, 0)
        near_copy = _copied(near_ptr, near_place + offset, until, offset, room, vocab_size, WIDTH)
        match = tl.where(in_context, voted_match, 0)
        in_near = tl.where(voted_match > match, near_length, 0)
        voted_copy = tl.where(
            in_context,
            _copied_context(
                context_ptr, match, place, length, begin, offset, room, vocab_size, WIDTH
            ),
            _copied(near_ptr, place + offset, in_near, offset, room, vocab_size, WIDTH),
        )
        voted_source = tl.where(in_context, CONTEXT, NEAR_ANSWER)

        corpus_match, corpus_copy, recent_match, recent_copy = _copied_corpus(
            arena_ptr, corpora_ptr, corpus_row, context_ptr, length, begin, offset, room,
            vocab_size, WIDTH, BLOCK,
        )  # fmt: skip

        firsts = (
            _first(context_copy, offset), _first(near_copy, offset), _first(corpus_copy, offset),
            _first(recent_copy, offset), _first(voted_copy, offset),
        )  # fmt: skip
        best = tl.full([], 0.0, tl.float32)
        # Of each source by its number, and then the one that is voted for.
        copies = (context_copy, near_copy, corpus_copy, recent_copy, voted_copy)
        matches = (context_match, near_match, corpus_match, recent_match, voted_match)
        sources = (CONTEXT, NEAR_ANSWER, CORPUS, RECENT, voted_source)
        for each in tl.static_range(NUM_COPIES):
            best, kind, source, row_of_hits, copy = _keep(
                copies[each], matches[each], sources[each], firsts, best, kind, source,
                row_of_hits, copy, pending_ptr, pending_token_ids_ptr, hit_worths_ptr, offset,
                max_draft, each,
            )  # fmt: skip

        tl.store(pending_ptr + PENDING_GENERATION, generation)
        tl.store(pending_ptr + PENDING_LENGTH, length)
        tl.store(pending_ptr + PENDING_COPY, kind)
        tl.store(pending_ptr + PENDING_SOURCE, source)
    cell = row_of_hits * OFFSETS + tl.minimum(offset, OFFSETS - 1)
    chance = tl.load(hit_chances_ptr + cell, mask=copy >= 0, other=0.0)
    token = tl.where(copy >= 0, copy, last).to(tl.int64)
    tl.store(drafts_ptr + row * drafts_stride + offset, token, mask=offset < num_drafts)
    tl.store(chances_ptr + row * chances_stride + offset, chance, mask=offset < num_drafts)


@triton.jit
def fold_kernel(
    hit_counts_ptr,  # [cells, 2] float32: in and out
    hit_chances_ptr,  # [cells] float32: out
    hit_worths_ptr,  # [cells / OFFSETS] float32: out
    new_hits_ptr,  # [cells, 2] int32: in, then 0
    totals_ptr,  # [NUM_SOURCES, 2] int64: in and out
    new_totals_ptr,  # [NUM_SOURCES, 2] int32: in, then 0
    CELLS: tl.constexpr,
    PADDED: tl.constexpr,
    PADDED_ROWS: tl.constexpr,
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
    # No thread may clear, nor read, what another has yet to read or write.
    tl.debug_barrier()
    row = tl.arange(0, PADDED_ROWS)
    survival = tl.full([PADDED_ROWS], 1.0, tl.float32)
    worth = tl.zeros([PADDED_ROWS], tl.float32)
    for offset in tl.static_range(WORTH_TOKENS):
        at = row * OFFSETS + offset
        survival *= tl.load(hit_chances_ptr + at, mask=at < CELLS, other=0.0)
        worth += survival
    tl.store(hit_worths_ptr + row, worth, mask=row * OFFSETS < CELLS)
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
    vocab_size: int,
) -> None:
    """See `draft_tokens`; two launches, whose grids depend on the number of rows alone."""
    with torch.cuda.device_of(drafts):
        draft_kernel[(idx_mapping.shape[0],)](
            drafts, chances, all_token_ids, total_len, idx_mapping, num_sampled,
            state.slots, state.near_token_ids, state.corpora, state.arena,
            state.hit_chances, state.hit_worths, state.new_hits, state.new_totals,
            state.pending, state.pending_token_ids, state.voting_places,
            all_token_ids.shape[1], all_token_ids.stride(0), state.near_token_ids.shape[1],
            state.max_draft, drafts.shape[1], drafts.stride(0), chances.stride(0),
            vocab_size,
            WIDTH=triton.next_power_of_2(state.max_draft), BLOCK=BLOCK,
            num_warps=NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
        cells = state.hit_chances.numel()
        fold_kernel[(1,)](
            state.hit_counts, state.hit_chances, state.hit_worths, state.new_hits,
            state.totals, state.new_totals,
            CELLS=cells, PADDED=triton.next_power_of_2(cells),
            PADDED_ROWS=triton.next_power_of_2(state.hit_worths.numel()),
            num_warps=4, enable_fp_fusion=False,
        )  # fmt: skip
