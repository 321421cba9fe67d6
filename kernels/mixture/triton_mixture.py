# ruff: noqa: N803
# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
# Kernels: compile-time constants are written in capitals, and their arguments have no Python types.
"""Drafting by the mixture in Triton: one launch, a program for each request, token after token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from reprise.kernels.draft import constants
from reprise.kernels.draft import state as draft_fields
from reprise.kernels.draft.state import DraftState
from reprise.kernels.mixture import layout, near, scratch
from reprise.kernels.mixture import state as fields
from reprise.kernels.mixture.state import MixtureState
from reprise.kernels.mixture.triton_choice import choose
from reprise.kernels.mixture.triton_context import find_context
from reprise.kernels.mixture.triton_corpus import find_corpus
from reprise.kernels.mixture.triton_near import advance, find_near, find_switches
from reprise.kernels.mixture.triton_places import NOTHING, text_at

NUM_SOURCES = tl.constexpr(constants.NUM_SOURCES)
GENERATION = tl.constexpr(constants.GENERATION)
ANSWER_BEGIN = tl.constexpr(constants.ANSWER_BEGIN)
CORPUS_ROW = tl.constexpr(constants.CORPUS_ROW)
SLOT_FIELDS = tl.constexpr(constants.SLOT_FIELDS)
TEXT_BEGIN = tl.constexpr(constants.TEXT_BEGIN)
TEXT_LENGTH = tl.constexpr(constants.TEXT_LENGTH)
ORDER_BEGIN = tl.constexpr(constants.ORDER_BEGIN)
ORDER_LENGTH = tl.constexpr(constants.ORDER_LENGTH)
RECENT_BEGIN = tl.constexpr(constants.RECENT_BEGIN)
CORPUS_FIELDS = tl.constexpr(constants.CORPUS_FIELDS)
PENDING_GENERATION = tl.constexpr(draft_fields.PENDING_GENERATION)
PENDING_LENGTH = tl.constexpr(draft_fields.PENDING_LENGTH)
PENDING_SOURCE = tl.constexpr(draft_fields.PENDING_SOURCE)
PENDING_FIELDS = tl.constexpr(draft_fields.PENDING_FIELDS)
MAX_NEAR = tl.constexpr(layout.MAX_NEAR)
CATCH_UP = tl.constexpr(near.CATCH_UP)
FIRST_HIT = tl.constexpr(near.FIRST_HIT)
LEAST_CHANCE = tl.constexpr(layout.LEAST_CHANCE)
NEAR_LENGTH = tl.constexpr(fields.NEAR_LENGTH)
NUM_NEAR = tl.constexpr(fields.NUM_NEAR)
NEAR_VERSION = tl.constexpr(fields.NEAR_VERSION)
SALT = tl.constexpr(fields.SALT)
MIXTURE_FIELDS = tl.constexpr(fields.MIXTURE_FIELDS)
NEAR_START = tl.constexpr(fields.NEAR_START)
NEAR_FIELDS = tl.constexpr(fields.NEAR_FIELDS)
KEPT_VERSION = tl.constexpr(fields.KEPT_VERSION)
KEPT_FIELDS = tl.constexpr(fields.KEPT_FIELDS)
NUM_PIECES = tl.constexpr(scratch.NUM_PIECES)
TOKENS = tl.constexpr(scratch.TOKENS)
DRAFTED = tl.constexpr(scratch.DRAFTED)
CHANCES = tl.constexpr(scratch.CHANCES)
NUM_WORDS = tl.constexpr(scratch.NUM_WORDS)
NUM_FLOATS = tl.constexpr(scratch.NUM_FLOATS)
WORDS_IN_ALL = tl.constexpr(scratch.WORDS_IN_ALL)
FLOATS_IN_ALL = tl.constexpr(scratch.FLOATS_IN_ALL)

BLOCK = 2048
"""Tokens that are scanned at a time."""
PRESENCE_BLOCK = 512
"""Tokens that candidates are looked for in at a time."""
CHUNK = 32
"""Pieces that all others are compared with at a time."""
NUM_WARPS = 8

_SIZES = [
    "max_model_len", "context_stride", "max_near_tokens", "max_draft", "num_drafts",
    "drafts_stride", "chances_stride",
]  # fmt: skip
_VIEWS = [
    "drafts_ptr", "chances_ptr", "all_token_ids_ptr", "total_len_ptr", "idx_mapping_ptr",
    "num_sampled_ptr",
]  # fmt: skip


@triton.jit
def _begin_alignment(
    slots_ptr,  # [SLOT_FIELDS]: the slot's, as all that follows
    near_slots_ptr,  # [MIXTURE_FIELDS]
    near_info_ptr,  # [MAX_NEAR, NEAR_FIELDS]
    kept_ptr,  # [KEPT_FIELDS]
    pointers_ptr,  # [max_draft + 1, MAX_NEAR]: in and out
    hits_ptr,
    pending_ptr,
    pending_token_ids_ptr,
    context_ptr,
    begin,
    length,
    max_draft,
    WIDTH: tl.constexpr,
):
    """See `torch_backend.begin_alignment`: put the alignment in the first row; how many tokens of
    the context it is for."""
    offset = tl.arange(0, WIDTH)
    before = tl.load(pending_ptr + PENDING_LENGTH)
    source = tl.maximum(tl.load(pending_ptr + PENDING_SOURCE), 0)
    is_own = tl.load(pending_ptr + PENDING_GENERATION) == tl.load(slots_ptr + GENERATION)
    is_own &= tl.load(kept_ptr + KEPT_VERSION) == tl.load(near_slots_ptr + NEAR_VERSION)
    drafted = tl.load(
        pending_token_ids_ptr + source * max_draft + offset, mask=offset < max_draft, other=-1
    )
    emitted = tl.where(is_own, length - before, 0)
    true = tl.load(context_ptr + before + offset, mask=offset < emitted, other=-2)
    right = tl.min(tl.where(drafted != true, offset, max_draft), axis=0)
    is_own &= length - before - right <= CATCH_UP
    lane = tl.arange(0, MAX_NEAR)
    real = lane < tl.load(near_slots_ptr + NUM_NEAR)
    start = tl.load(near_info_ptr + lane * NEAR_FIELDS + NEAR_START, mask=real, other=0)
    row = tl.where(is_own, right, 0) * MAX_NEAR + lane
    pointer = tl.where(is_own, tl.load(pointers_ptr + row), tl.where(real, start + 1, -1))
    hits = tl.where(is_own, tl.load(hits_ptr + row), tl.where(real, FIRST_HIT, 0.0))
    # No thread may write what another has yet to read.
    tl.debug_barrier()
    tl.store(pointers_ptr + lane, pointer)
    tl.store(hits_ptr + lane, hits)
    return tl.where(is_own, before + right, tl.maximum(begin, length - CATCH_UP))


@triton.jit
def _predict(
    near_ptr, near_tags_ptr, near_info_ptr, pointers_ptr, hits_ptr,
    mixture_ptr, choice_ptr, words_ptr, floats_ptr, shares_ptr,
    context_ptr, drafted_ptr, begin, length, end, near_length, num_near,
    corpora_ptr, arena_ptr, has_corpus, last, before, salt, num_pieces,
    BLOCK: tl.constexpr, PRESENCE_BLOCK: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """See `reference.predict`, for which the evidence of matches in near answers is there already,
    `num_pieces` of it: the likeliest token (-1: none), its chance and its source."""
    near_end = find_switches(
        near_ptr, near_tags_ptr, near_info_ptr, pointers_ptr, hits_ptr,
        mixture_ptr, choice_ptr, words_ptr, floats_ptr, near_length, num_near, num_pieces,
    )  # fmt: skip
    # The lists of places are written anew.
    tl.debug_barrier()
    context_end = find_context(
        mixture_ptr, choice_ptr, words_ptr, floats_ptr,
        context_ptr, drafted_ptr, begin, length, end, last, before, near_end, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    text_ptr = arena_ptr + tl.load(corpora_ptr + TEXT_BEGIN, mask=has_corpus, other=0)
    text_length = tl.load(corpora_ptr + TEXT_LENGTH, mask=has_corpus, other=0)
    order_ptr = arena_ptr + tl.load(corpora_ptr + ORDER_BEGIN, mask=has_corpus, other=0)
    order_length = tl.load(corpora_ptr + ORDER_LENGTH, mask=has_corpus, other=0)
    recent_begin = tl.load(corpora_ptr + RECENT_BEGIN, mask=has_corpus, other=0)
    num_orders, num_pieces = find_corpus(
        mixture_ptr, choice_ptr, words_ptr, floats_ptr,
        context_ptr, drafted_ptr, begin, length, end,
        text_ptr, text_length, order_ptr, order_length, recent_begin, last, context_end, BLOCK,
    )  # fmt: skip
    tl.debug_barrier()
    oldest = tl.where(end > 1, before, last)
    return choose(
        words_ptr, floats_ptr, shares_ptr, mixture_ptr, choice_ptr,
        context_ptr, begin, length, near_ptr, near_tags_ptr, near_length,
        num_near, num_orders, near_end, context_end, num_pieces, last, oldest, salt,
        PRESENCE_BLOCK, CHUNK,
    )  # fmt: skip


@triton.jit(do_not_specialize=_SIZES, do_not_specialize_on_alignment=_VIEWS)
def mixture_kernel(
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
    pending_ptr,  # [num_slots, PENDING_FIELDS] int32: in and out
    pending_token_ids_ptr,  # [num_slots, NUM_SOURCES, max_draft] int32: in and out
    mixture_weights_ptr,  # [NUM_MIXTURE] float32
    choice_weights_ptr,  # [NUM_CHOICE] float32
    near_slots_ptr,  # [num_slots, MIXTURE_FIELDS] int32
    near_tags_ptr,  # [num_slots, max_near_tokens] int32
    near_info_ptr,  # [num_slots, MAX_NEAR, NEAR_FIELDS] int32
    kept_ptr,  # [num_slots, KEPT_FIELDS] int32: in and out
    pointers_ptr,  # [num_slots, max_draft + 1, MAX_NEAR] int32: in and out
    hits_ptr,  # [num_slots, max_draft + 1, MAX_NEAR] float32: in and out
    all_words_ptr,  # [num_slots, WORDS_IN_ALL] int32: scratch of each row
    all_floats_ptr,  # [num_slots, FLOATS_IN_ALL] float32: scratch
    all_shares_ptr,  # [num_slots, 2 * NUM_PIECES] int64: scratch
    max_model_len,
    context_stride,
    max_near_tokens,
    max_draft,
    num_drafts,
    drafts_stride,
    chances_stride,
    WIDTH: tl.constexpr,  # max_draft, rounded up
    BLOCK: tl.constexpr,
    PRESENCE_BLOCK: tl.constexpr,
    CHUNK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    offset = tl.arange(0, WIDTH)
    slot = tl.load(idx_mapping_ptr + row).to(tl.int64)
    length = tl.load(total_len_ptr + slot, mask=slot >= 0, other=0)
    context_ptr = all_token_ids_ptr + slot * context_stride
    newest = tl.load(context_ptr + length - 1, mask=length > 0, other=0)
    number = tl.full([], 0, tl.int32)
    all_words_ptr += row * WORDS_IN_ALL
    all_floats_ptr += row * FLOATS_IN_ALL
    all_shares_ptr += row * 2 * NUM_PIECES
    drafted_ptr = all_words_ptr + DRAFTED
    drafted_chances_ptr = all_floats_ptr + CHANCES
    if (tl.load(num_sampled_ptr + row) > 0) & (length > 0):
        slots_ptr += slot * SLOT_FIELDS
        pending_ptr += slot * PENDING_FIELDS
        pending_token_ids_ptr += slot * NUM_SOURCES * max_draft
        near_ptr = near_token_ids_ptr + slot * max_near_tokens
        near_tags_ptr += slot * max_near_tokens
        near_slots_ptr += slot * MIXTURE_FIELDS
        near_info_ptr += slot * MAX_NEAR * NEAR_FIELDS
        kept_ptr += slot * KEPT_FIELDS
        pointers_ptr += slot * (max_draft + 1) * MAX_NEAR
        hits_ptr += slot * (max_draft + 1) * MAX_NEAR
        begin = tl.minimum(tl.load(slots_ptr + ANSWER_BEGIN), length)
        near_length = tl.load(near_slots_ptr + NEAR_LENGTH)
        num_near = tl.load(near_slots_ptr + NUM_NEAR)
        salt = tl.load(near_slots_ptr + SALT)
        corpus_row = tl.load(slots_ptr + CORPUS_ROW).to(tl.int64)
        has_corpus = corpus_row >= 0
        corpora_ptr += corpus_row * CORPUS_FIELDS
        tokens = _begin_alignment(
            slots_ptr, near_slots_ptr, near_info_ptr, kept_ptr, pointers_ptr, hits_ptr,
            pending_ptr, pending_token_ids_ptr, context_ptr, begin, length, max_draft, WIDTH,
        )  # fmt: skip
        until = length + tl.minimum(num_drafts, max_model_len - length)
        source = tl.full([], -1, tl.int32)
        right = tl.full([], 1.0, tl.float32)
        # Tokens up to `tokens` predict the next one; of those that are known, only the alignment is
        # brought up to date.
        while tokens < until:
            is_draft = tokens >= length
            # What the threads of the last round have read is overwritten from here on.
            tl.debug_barrier()
            words_ptr = all_words_ptr + (tokens & 1) * NUM_WORDS
            floats_ptr = all_floats_ptr + (tokens & 1) * NUM_FLOATS
            shares_ptr = all_shares_ptr + (tokens & 1) * NUM_PIECES
            piece = tl.arange(0, NUM_PIECES)
            tl.store(words_ptr + TOKENS + piece, piece * 0 - 1)
            end = tokens + 1
            last = text_at(context_ptr, drafted_ptr, begin, length, end - 1, end > 0)
            before = text_at(context_ptr, drafted_ptr, begin, length, end - 2, end > 1)
            near_before = tl.where(is_draft & (end - 2 >= begin), before, NOTHING)
            at_ptr = pointers_ptr + tl.maximum(tokens - length, 0) * MAX_NEAR
            hit_ptr = hits_ptr + tl.maximum(tokens - length, 0) * MAX_NEAR
            piece_token, place, worth, near_of, num_pieces = find_near(
                near_ptr, near_tags_ptr, near_info_ptr, at_ptr, hit_ptr,
                mixture_weights_ptr, choice_weights_ptr, words_ptr, floats_ptr,
                context_ptr, drafted_ptr, begin, length, end, near_length,
                last, near_before, is_draft, BLOCK,
            )  # fmt: skip
            next_ptr = pointers_ptr + tl.maximum(end - length, 0) * MAX_NEAR
            next_hit_ptr = hits_ptr + tl.maximum(end - length, 0) * MAX_NEAR
            if is_draft:
                token, chance, token_source = _predict(
                    near_ptr, near_tags_ptr, near_info_ptr, at_ptr, hit_ptr,
                    mixture_weights_ptr, choice_weights_ptr, words_ptr, floats_ptr, shares_ptr,
                    context_ptr, drafted_ptr, begin, length, end, near_length, num_near,
                    corpora_ptr, arena_ptr, has_corpus, last, before, salt, num_pieces,
                    BLOCK, PRESENCE_BLOCK, CHUNK,
                )  # fmt: skip
                right *= chance
                if token >= 0:
                    source = tl.where(number == 0, token_source, source)
                    tl.store(drafted_ptr + number, token)
                    tl.store(drafted_chances_ptr + number, chance)
                    number += 1
                until = tl.where((token < 0) | (right < LEAST_CHANCE), end, until)
            else:
                token = tl.load(context_ptr + tokens)
            if token >= 0:
                advance(
                    at_ptr, hit_ptr, next_ptr, next_hit_ptr,
                    token, piece_token, place, worth, near_of,
                )  # fmt: skip
            tokens = end
        tl.debug_barrier()
        drafted = tl.load(drafted_ptr + offset, mask=offset < number, other=-1)
        tl.store(pending_ptr + PENDING_GENERATION, tl.load(slots_ptr + GENERATION))
        tl.store(pending_ptr + PENDING_LENGTH, length)
        tl.store(pending_ptr + PENDING_SOURCE, source)
        tl.store(kept_ptr + KEPT_VERSION, tl.load(near_slots_ptr + NEAR_VERSION))
        row_ptr = pending_token_ids_ptr + tl.maximum(source, 0) * max_draft
        tl.store(row_ptr + offset, drafted, mask=offset < max_draft)
    tl.debug_barrier()
    drafted = tl.load(drafted_ptr + offset, mask=offset < number, other=-1)
    chance = tl.load(drafted_chances_ptr + offset, mask=offset < number, other=0.0)
    token = tl.where(offset < number, drafted, newest).to(tl.int64)
    tl.store(drafts_ptr + row * drafts_stride + offset, token, mask=offset < num_drafts)
    tl.store(chances_ptr + row * chances_stride + offset, chance, mask=offset < num_drafts)


def mixture_tokens_triton(
    state: DraftState,
    mixture: MixtureState,
    *,
    all_token_ids: torch.Tensor,  # [num_slots, max_model_len] int32
    total_len: torch.Tensor,  # [num_slots] int32
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64
    num_sampled: torch.Tensor,  # [num_reqs] int32
    drafts: torch.Tensor,  # [num_reqs, K] int64: out
    chances: torch.Tensor,  # [num_reqs, K] float32: out
) -> None:
    """See `draft_tokens`; one launch, whose grid depends on the number of rows alone."""
    with torch.cuda.device_of(drafts):
        mixture_kernel[(idx_mapping.shape[0],)](
            drafts, chances, all_token_ids, total_len, idx_mapping, num_sampled,
            state.slots, state.near_token_ids, state.corpora, state.arena,
            state.pending, state.pending_token_ids,
            mixture.mixture_weights, mixture.choice_weights, mixture.slots, mixture.near_tags,
            mixture.near_info, mixture.kept, mixture.pointers, mixture.hits,
            mixture.words, mixture.floats, mixture.shares,
            all_token_ids.shape[1], all_token_ids.stride(0), state.near_token_ids.shape[1],
            state.max_draft, drafts.shape[1], drafts.stride(0), chances.stride(0),
            WIDTH=triton.next_power_of_2(state.max_draft), BLOCK=BLOCK,
            PRESENCE_BLOCK=PRESENCE_BLOCK, CHUNK=CHUNK,
            num_warps=NUM_WARPS, enable_fp_fusion=True,
        )  # fmt: skip
