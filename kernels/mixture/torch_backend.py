"""Drafting by the mixture on the CPU: the definition that the kernel is held to, row by row."""

from __future__ import annotations

from collections import Counter

import torch

from reprise.kernels.draft.constants import (
    ANSWER_BEGIN,
    BOS,
    CORPUS_ROW,
    GENERATION,
    ORDER_BEGIN,
    ORDER_LENGTH,
    RECENT_BEGIN,
    TEXT_BEGIN,
    TEXT_LENGTH,
)
from reprise.kernels.draft.state import (
    PENDING_GENERATION,
    PENDING_LENGTH,
    PENDING_SOURCE,
    DraftState,
)
from reprise.kernels.mixture.evidence import Alignment, NearTexts, SortedAnswers, Text, advance
from reprise.kernels.mixture.layout import LEAST_CHANCE, MAX_NEAR
from reprise.kernels.mixture.near import CATCH_UP, FIRST_HIT
from reprise.kernels.mixture.reference import Presence, Weights, draft, near_pieces
from reprise.kernels.mixture.state import (
    KEPT_VERSION,
    NEAR_VERSION,
    SALT,
    TAG_FIRST,
    MixtureState,
)


def mixture_tokens_torch(
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
    """See `draft_by_mixture`."""
    chances.zero_()
    mixture_weights, choice_weights = (
        table.tolist() for table in (mixture.mixture_weights, mixture.choice_weights)
    )
    for row, slot in enumerate(idx_mapping.tolist()):
        if slot < 0:
            drafts[row] = 0
            continue
        tokens = all_token_ids[slot, : int(total_len[slot])].tolist()
        drafts[row] = tokens[-1] if tokens else 0
        if int(num_sampled[row]) > 0 and tokens:
            room = min(drafts.shape[1], all_token_ids.shape[1] - len(tokens))
            salt = int(mixture.slots[slot, SALT]) & 0xFFFFFFFF
            weights = Weights(mixture_weights, choice_weights, salt)
            draft_row(
                state, mixture, slot, tokens, weights, drafts[row, :room], chances[row, :room]
            )


def draft_row(
    state: DraftState,
    mixture: MixtureState,
    slot: int,
    tokens: list[int],
    weights: Weights,
    drafts: torch.Tensor,  # [room] int64: out
    chances: torch.Tensor,  # [room] float32: out
) -> None:
    """Draft for one request, and keep the alignment after each token."""
    begin = min(int(state.slots[slot, ANSWER_BEGIN]), len(tokens))
    near = near_of(state, mixture, slot)
    alignment = begin_alignment(state, mixture, slot, tokens, begin, near)
    prompt, answer = tokens[:begin], tokens[begin:]
    found, probs, alignments, source = draft(
        Text([*prompt, BOS, *answer], begin, len(tokens) + 1),
        near,
        alignment,
        corpus_of(state, slot),
        Presence(Counter(prompt), Counter(answer), presence_of(near, mixture, slot)),
        weights,
        max_draft=len(drafts),
        least_chance=LEAST_CHANCE,
    )
    drafts[: len(found)] = torch.tensor(found, dtype=torch.int64)
    chances[: len(found)] = torch.tensor(probs)
    for row, each in enumerate([alignment, *alignments]):
        padding = MAX_NEAR - len(each.pointers)
        mixture.pointers[slot, row] = torch.tensor([*each.pointers, *[-1] * padding])
        mixture.hits[slot, row] = torch.tensor([*each.hits, *[0.0] * padding])
    mixture.kept[slot, KEPT_VERSION] = mixture.slots[slot, NEAR_VERSION]
    state.pending[slot, PENDING_GENERATION] = state.slots[slot, GENERATION]
    state.pending[slot, PENDING_LENGTH] = len(tokens)
    state.pending[slot, PENDING_SOURCE] = source
    state.pending_token_ids[slot, max(source, 0)] = -1
    state.pending_token_ids[slot, max(source, 0), : len(found)] = torch.tensor(
        found, dtype=torch.int32
    )


def near_of(state: DraftState, mixture: MixtureState, slot: int) -> NearTexts:
    """The near answers of a slot."""
    length, number, _, _ = mixture.slots[slot].tolist()
    tokens = state.near_token_ids[slot, :length].tolist()
    places: dict[int, list[int]] = {}
    for place, token in enumerate(tokens):
        places.setdefault(token, []).append(place)
    starts, similarities, ranks, clauses = mixture.near_info[slot, :number].T.tolist()
    tags = [tag % TAG_FIRST for tag in mixture.near_tags[slot, :length].tolist()]
    return NearTexts(tokens, tags, similarities, ranks, clauses, starts, places)


def presence_of(near: NearTexts, mixture: MixtureState, slot: int) -> Counter[int]:
    """In how many near answers each token is."""
    tags = mixture.near_tags[slot, : len(near.token_ids)].tolist()
    return Counter(
        token for token, tag in zip(near.token_ids, tags, strict=True) if tag >= TAG_FIRST
    )


def corpus_of(state: DraftState, slot: int) -> SortedAnswers:
    """The corpus that a slot's request drafts from."""
    corpus_row = int(state.slots[slot, CORPUS_ROW])
    if corpus_row < 0:
        return SortedAnswers([], [], 0)
    row = state.corpora[corpus_row].tolist()
    text = state.arena[row[TEXT_BEGIN] : row[TEXT_BEGIN] + row[TEXT_LENGTH]]
    order = state.arena[row[ORDER_BEGIN] : row[ORDER_BEGIN] + row[ORDER_LENGTH]]
    return SortedAnswers(text.tolist(), order.tolist(), row[RECENT_BEGIN])


def begin_alignment(
    state: DraftState,
    mixture: MixtureState,
    slot: int,
    tokens: list[int],
    begin: int,
    near: NearTexts,
) -> Alignment:
    """The alignment at the end of the context: after the draft's last token that was right, kept
    since then, and moved on by the tokens that came behind it."""
    generation, length, source = state.pending[slot, : PENDING_SOURCE + 1].tolist()
    drafted = state.pending_token_ids[slot, max(source, 0)].tolist()
    right = 0
    for token, true in zip(drafted, tokens[length:], strict=False):
        if token != true:
            break
        right += 1
    is_own = (
        generation == int(state.slots[slot, GENERATION])
        and int(mixture.kept[slot, KEPT_VERSION]) == int(mixture.slots[slot, NEAR_VERSION])
        and len(tokens) - length - right <= CATCH_UP
    )
    number = len(near.starts)
    if is_own:
        first = length + right
        alignment = Alignment(
            mixture.pointers[slot, right, :number].tolist(),
            mixture.hits[slot, right, :number].tolist(),
        )
    else:
        first = max(begin, len(tokens) - CATCH_UP)
        alignment = Alignment([start + 1 for start in near.starts], [FIRST_HIT] * number)
    for at in range(first, len(tokens)):
        text = Text([*tokens[:begin], BOS, *tokens[begin:at]], begin, at + 1)
        alignment = advance(alignment, near_pieces(text, near, alignment), near, tokens[at])
    return alignment
