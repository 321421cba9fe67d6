"""Drafting in plain torch: the definition that the kernel is held to, token for token."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch

from reprise.kernels.draft.constants import (
    BOS,
    CONTEXT,
    CORPUS,
    GENERATION,
    MAX_MATCH,
    MAX_TRIES,
    NEAR_ANSWER,
    NUM_SOURCES,
    OFFSETS,
    ORDER_BEGIN,
    ORDER_LENGTH,
    RECENT,
    RECENT_BEGIN,
    REMOVED,
    TEXT_BEGIN,
    TEXT_LENGTH,
    VOTES,
    match_bucket,
)
from reprise.kernels.draft.state import (
    PENDING_BUCKETS,
    PENDING_GENERATION,
    PENDING_LENGTH,
    PENDING_SOURCE,
    DraftState,
)


class Copy(NamedTuple):
    """What follows the longest match in a source."""

    match: int = 0
    token_ids: torch.Tensor = torch.zeros(0, dtype=torch.int32)  # [<= K] int32


def draft_tokens_torch(
    state: DraftState,
    *,
    all_token_ids: torch.Tensor,  # [num_slots, max_model_len] int32
    total_len: torch.Tensor,  # [num_slots] int32
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64
    num_sampled: torch.Tensor,  # [num_reqs] int32
    drafts: torch.Tensor,  # [num_reqs, K] int64: out
    chances: torch.Tensor,  # [num_reqs, K] float32: out
) -> None:
    """See `draft_tokens`: row by row, then the counts of hits are brought up to date."""
    chances.zero_()
    for row, slot in enumerate(idx_mapping.tolist()):
        if slot < 0:
            drafts[row] = 0
            continue
        text = all_token_ids[slot, : int(total_len[slot])].cpu()
        drafts[row] = int(text[-1]) if len(text) else 0
        if int(num_sampled[row]) > 0 and len(text):
            learn(state, slot, text)
            room = min(drafts.shape[1], all_token_ids.shape[1] - len(text))
            draft_row(state, slot, text, drafts[row, :room], chances[row, :room])
    fold_hits_torch(state)


def draft_row(
    state: DraftState,
    slot: int,
    text: torch.Tensor,  # [n] int32
    drafts: torch.Tensor,  # [room] int64: out
    chances: torch.Tensor,  # [room] float32: out
) -> None:
    """Copy from the source that has been right most often; keep all copies to learn from."""
    copies = find_copies(state, slot, text, len(drafts))
    best, source = 0.0, -1
    for kind, copy in enumerate(copies):
        chance = float(state.hit_chances[kind, match_bucket(copy.match), 0])
        if len(copy.token_ids) and chance > best:
            best, source = chance, kind
    if source >= 0:
        copy = copies[source]
        length = len(copy.token_ids)
        drafts[:length] = copy.token_ids
        offsets = torch.arange(length).clamp(max=OFFSETS - 1)
        cells = state.hit_chances[source, match_bucket(copy.match)]
        chances[:length] = cells[offsets.to(cells.device)]
    state.pending[slot, PENDING_GENERATION] = state.slots[slot, GENERATION]
    state.pending[slot, PENDING_LENGTH] = len(text)
    state.pending[slot, PENDING_SOURCE] = source
    state.pending_token_ids[slot] = -1
    for kind, copy in enumerate(copies):
        state.pending[slot, PENDING_BUCKETS + kind] = match_bucket(copy.match)
        state.pending_token_ids[slot, kind, : len(copy.token_ids)] = copy.token_ids.to(
            state.pending_token_ids.device
        )


def find_copies(state: DraftState, slot: int, text: torch.Tensor, length: int) -> list[Copy]:
    """The copy of each source, up to `length` tokens each."""
    _, begin, near_length, corpus_row = state.slots[slot].tolist()
    begin = min(begin, len(text))
    tail = pattern_of(text, begin)
    copies = [Copy()] * NUM_SOURCES
    copies[CONTEXT] = copy_context(text, begin, tail, length)
    near = state.near_token_ids[slot, :near_length].cpu()
    copies[NEAR_ANSWER] = copy_answer(near, *longest(near, tail, last=False), length)
    if corpus_row >= 0:
        row = state.corpora[corpus_row].tolist()
        stored = state.arena[row[TEXT_BEGIN] : row[TEXT_BEGIN] + row[TEXT_LENGTH]].cpu()
        order = state.arena[row[ORDER_BEGIN] : row[ORDER_BEGIN] + row[ORDER_LENGTH]].cpu()
        copies[CORPUS] = copy_answer(stored, *commonest_longest(stored, order, tail), length)
        recent = stored[row[RECENT_BEGIN] :]
        copies[RECENT] = copy_answer(recent, *longest(recent, tail, last=True), length)
    return copies


def pattern_of(text: torch.Tensor, begin: int) -> torch.Tensor:
    """The last tokens of the answer, the last first, and BOS where that is all: int32 [<= 16]."""
    answer = torch.cat((torch.tensor([BOS], dtype=torch.int32), text[begin:]))
    return answer[-MAX_MATCH:].flip(0)


def matches(source: torch.Tensor, tail: torch.Tensor) -> torch.Tensor:
    """How many symbols up to each of a source's equal the tail's, int64 [len(source)]; 0 where no
    token follows."""
    found = torch.zeros(len(source), dtype=torch.int64)
    if not len(source):
        return found
    alive = torch.ones(len(source), dtype=torch.bool)
    alive[-1] = False
    alive[:-1] = source[1:] >= 0
    for k, symbol in enumerate(tail[: len(source)].tolist()):
        if not alive.any():
            break
        alive[:k] = False
        alive[k:] &= source[: len(source) - k] == symbol
        found += alive
    return found


def longest(source: torch.Tensor, tail: torch.Tensor, *, last: bool) -> tuple[int, int]:
    """Match and place of the next token of the first or last of the longest matches; 0, 0: none."""
    found = matches(source, tail)
    if not len(found) or int(found.max()) == 0:
        return 0, 0
    return int(found.max()), int((found == found.max()).nonzero()[-1 if last else 0]) + 1


def commonest_longest(
    stored: torch.Tensor,  # [t] int32: a corpus's text
    order: torch.Tensor,  # [s] int32: its suffix array
    tail: torch.Tensor,  # [<= MAX_MATCH] int32
) -> tuple[int, int]:
    """Match and place of the commonest token after the longest matches; of equally common ones, and
    of the places of one, the last. A long range of the suffix array is asked at even distances."""
    text, entries = stored.numpy(), order.numpy()
    match, place = 0, 0
    for length in range(1, len(tail) + 1):
        pattern = tail[:length].flip(0).tolist()

        def suffix(entry: int, length: int = length) -> list[int]:
            part = text[entries[entry] : entries[entry] + length].tolist()
            return [token if token >= BOS else token - REMOVED for token in part]

        low = bisect_left(range(len(entries)), pattern, key=suffix)
        size = bisect_right(range(len(entries)), pattern, lo=low, key=suffix) - low
        if not size:
            break
        asked = (
            range(size)
            if size <= VOTES
            else [(2 * i + 1) * size // (2 * VOTES) for i in range(VOTES)]
        )
        places = [int(entries[low + i]) + length for i in asked]
        places = [at for at in places if at < len(text) and text[at] >= 0]
        votes = [int(text[at]) for at in places]
        if places:
            match = length
            _, place = max(
                (votes.count(token), at) for token, at in zip(votes, places, strict=True)
            )
    return match, place


def copy_answer(source: torch.Tensor, match: int, place: int, length: int) -> Copy:
    """What follows from `place` on to the end of the answer."""
    if match == 0:
        return Copy()
    following = source[place : place + length]
    ends = (following < 0).nonzero()
    return Copy(match, following[: int(ends[0])] if len(ends) else following)


def copy_context(text: torch.Tensor, begin: int, tail: torch.Tensor, length: int) -> Copy:
    """From the prompt, to its end, or from the answer, again and again; its last match wins."""
    prompt_match, prompt_place = longest(text[:begin], tail[tail >= 0], last=True)
    match, place = longest(text[begin:], tail[tail >= 0], last=True)
    if match and match >= prompt_match:
        again = torch.arange(length) % (len(text) - begin - place)
        return Copy(match, text[begin + place + again])
    if prompt_match:
        return Copy(prompt_match, text[prompt_place : min(begin, prompt_place + length)])
    return Copy()


def learn(state: DraftState, slot: int, text: torch.Tensor) -> None:
    """Count what the copies kept for this request would have had right of the tokens since."""
    generation, length, given, *buckets = state.pending[slot].tolist()
    if generation != int(state.slots[slot, GENERATION]):
        return
    emitted = text[length:].tolist()
    for source, copied in enumerate(state.pending_token_ids[slot].tolist()):
        for offset, (token, true) in enumerate(zip(copied, emitted, strict=False)):
            if token < 0:
                break
            right = int(token == true)
            count = torch.tensor([1, right], dtype=torch.int32, device=state.new_hits.device)
            state.new_hits[source, buckets[source], min(offset, OFFSETS - 1)] += count
            if source == given:
                state.new_totals[source] += count
            if not right:
                break


def fold_hits_torch(state: DraftState) -> None:
    """Add what is new to the counts, let them fade, and renew the chances."""
    counts = state.hit_counts + state.new_hits
    kept = MAX_TRIES / counts[..., :1].clamp(min=MAX_TRIES)
    state.hit_counts.copy_(counts * kept)
    state.hit_chances.copy_(state.hit_counts[..., 1] / state.hit_counts[..., 0])
    state.totals.add_(state.new_totals)
    state.new_hits.zero_()
    state.new_totals.zero_()
