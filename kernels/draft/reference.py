"""Drafting in plain torch: the definition that the kernel is held to, token for token."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

import torch

from reprise.kernels.draft.constants import (
    AGREEMENTS,
    BOS,
    CONTEXT,
    CORPUS,
    ENTRY,
    GENERATION,
    MAX_MATCH,
    MAX_TRIES,
    NEAR_ANSWER,
    NUM_COPIES,
    OFFSETS,
    ORDER_BEGIN,
    ORDER_LENGTH,
    RECENT,
    RECENT_BEGIN,
    REMOVED,
    TEXT_BEGIN,
    TEXT_LENGTH,
    VOTED,
    VOTES,
    match_bucket,
)
from reprise.kernels.draft.reference_vote import best_beyond, find_voters, second_matches, vote
from reprise.kernels.draft.state import (
    PENDING_COPY,
    PENDING_GENERATION,
    PENDING_LENGTH,
    PENDING_ROWS,
    PENDING_SOURCE,
    DraftState,
    worths_of,
)


class Copy(NamedTuple):
    """What follows a match in a source."""

    source: int = -1
    match: int = 0
    token_ids: torch.Tensor = torch.zeros(0, dtype=torch.int32)  # [<= K] int32

    def within(self, vocab_size: int) -> Copy:
        """The copy up to the first token that is none of the vocabulary."""
        beyond = (self.token_ids >= vocab_size).nonzero()
        end = int(beyond[0]) if len(beyond) else len(self.token_ids)
        return self._replace(token_ids=self.token_ids[:end])


def draft_tokens_torch(
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
            draft_row(state, slot, text, drafts[row, :room], chances[row, :room], vocab_size)
    fold_hits_torch(state)


def draft_row(
    state: DraftState,
    slot: int,
    text: torch.Tensor,  # [n] int32
    drafts: torch.Tensor,  # [room] int64: out
    chances: torch.Tensor,  # [room] float32: out
    vocab_size: int,
) -> None:
    """Give out the copy that is worth most; keep all copies to learn from."""
    found = find_copies(state, slot, text, len(drafts))
    copies = [copy.within(vocab_size) for copy in found]
    agreements = agreements_of(copies)
    best, given = 0.0, -1
    for kind, (copy, agreement) in enumerate(zip(copies, agreements, strict=True)):
        worth = float(state.hit_worths[kind, match_bucket(copy.match), agreement])
        if len(copy.token_ids) and worth > best:
            best, given = worth, kind
    if given >= 0:
        copy = copies[given]
        length = len(copy.token_ids)
        drafts[:length] = copy.token_ids
        offsets = torch.arange(length).clamp(max=OFFSETS - 1)
        cells = state.hit_chances[given, match_bucket(copy.match), agreements[given]]
        chances[:length] = cells[offsets.to(cells.device)]
    state.pending[slot, PENDING_GENERATION] = state.slots[slot, GENERATION]
    state.pending[slot, PENDING_LENGTH] = len(text)
    state.pending[slot, PENDING_COPY] = given
    state.pending[slot, PENDING_SOURCE] = copies[given].source if given >= 0 else -1
    state.pending_token_ids[slot] = -1
    for kind, (copy, agreement) in enumerate(zip(copies, agreements, strict=True)):
        row = match_bucket(copy.match) * AGREEMENTS + agreement
        state.pending[slot, PENDING_ROWS + kind] = row
        state.pending_token_ids[slot, kind, : len(copy.token_ids)] = copy.token_ids.to(
            state.pending_token_ids.device
        )


def agreements_of(copies: list[Copy]) -> list[int]:
    """How many others begin with the same token as each copy, up to what is told apart."""
    firsts = [int(copy.token_ids[0]) if len(copy.token_ids) else -1 for copy in copies]
    return [min(firsts.count(first) - 1, AGREEMENTS - 1) if first >= 0 else 0 for first in firsts]


def find_copies(state: DraftState, slot: int, text: torch.Tensor, length: int) -> list[Copy]:
    """The copy of each source, and of what is voted for, up to `length` tokens each."""
    _, begin, near_length, corpus_row = state.slots[slot].tolist()
    begin = min(begin, len(text))
    tail = pattern_of(text, begin)
    copies = [Copy()] * NUM_COPIES
    copies[CONTEXT] = copy_context(text, begin, *longest_in_context(text, begin, tail), length)
    near = state.near_token_ids[slot, :near_length].cpu()
    copies[NEAR_ANSWER], copies[VOTED] = copy_near_and_voted(
        state, slot, text, begin, near, tail, length
    )
    if corpus_row >= 0:
        row = state.corpora[corpus_row].tolist()
        stored = state.arena[row[TEXT_BEGIN] : row[TEXT_BEGIN] + row[TEXT_LENGTH]].cpu()
        order = state.arena[row[ORDER_BEGIN] : row[ORDER_BEGIN] + row[ORDER_LENGTH]].cpu()
        copies[CORPUS] = copy_answer(
            CORPUS, stored, *commonest_longest(stored, order, tail), length
        )
        recent = stored[row[RECENT_BEGIN] :]
        copies[RECENT] = copy_answer(RECENT, recent, *longest(recent, tail, last=True), length)
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
    return longest_of(matches(source, tail), last=last)


def longest_of(found: torch.Tensor, *, last: bool) -> tuple[int, int]:
    """The same, from what `matches` has found."""
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


def copy_answer(kind: int, source: torch.Tensor, match: int, place: int, length: int) -> Copy:
    """What follows from `place` on to the end of the answer."""
    if match == 0:
        return Copy()
    following = source[place : place + length]
    ends = (following < 0).nonzero()
    return Copy(kind, match, following[: int(ends[0])] if len(ends) else following)


def matches_in_context(text: torch.Tensor, begin: int, tail: torch.Tensor) -> torch.Tensor:
    """`matches` in the prompt and in the answer, none across."""
    tail = tail[tail >= 0]
    return torch.cat((matches(text[:begin], tail), matches(text[begin:], tail)))


def longest_in_context(text: torch.Tensor, begin: int, tail: torch.Tensor) -> tuple[int, int]:
    """Match and place of the next token of the last of the longest matches; 0, 0: none."""
    return longest_of(matches_in_context(text, begin, tail), last=True)


def copy_context(text: torch.Tensor, begin: int, match: int, place: int, length: int) -> Copy:
    """What follows from `place` on to the prompt's end, or in the answer, again and again."""
    if match == 0:
        return Copy()
    if place <= begin:
        return Copy(CONTEXT, match, text[place : min(begin, place + length)])
    return Copy(CONTEXT, match, text[place + torch.arange(length) % (len(text) - place)])


def copy_near_and_voted(
    state: DraftState,
    slot: int,
    text: torch.Tensor,  # [n] int32
    begin: int,
    near: torch.Tensor,  # [near_length] int32
    tail: torch.Tensor,
    length: int,
) -> tuple[Copy, Copy]:
    """From the longest match in the near answers, of several the one that matches most beyond a
    difference, and from the one that is voted for; keep who votes."""
    near_found = matches(near, tail)
    match, place = longest_of(near_found, last=False)
    voters = find_voters(near_found, last=False)
    others = find_voters(matches_in_context(text, begin, tail), last=True)
    for kept, some in zip(state.voting_places[slot], (voters, others), strict=True):
        entries = torch.from_numpy(some.places * ENTRY + some.matches).to(torch.int32)
        kept[: len(entries)] = entries.to(kept.device)
    source, context = near.numpy(), text.numpy()
    second = second_matches(source, voters, context, begin, in_context=False)
    others_second = second_matches(context, others, context, begin, in_context=True)
    place = best_beyond(voters, second, match, place)
    near_copy = copy_answer(NEAR_ANSWER, near, match, place, length)
    match, place, in_context = vote(source, voters, second, context, others, others_second)
    if in_context:
        return near_copy, copy_context(text, begin, match, place, length)
    return near_copy, copy_answer(NEAR_ANSWER, near, match, place, length)


def learn(state: DraftState, slot: int, text: torch.Tensor) -> None:
    """Count what the copies kept for this request would have had right of the tokens since."""
    generation, length, given, origin, *rows = state.pending[slot].tolist()
    if generation != int(state.slots[slot, GENERATION]):
        return
    emitted = text[length:].tolist()
    new_hits = state.new_hits.flatten(1, 2)  # [NUM_COPIES, rows, OFFSETS, 2]
    for kind, copied in enumerate(state.pending_token_ids[slot].tolist()):
        for offset, (token, true) in enumerate(zip(copied, emitted, strict=False)):
            if token < 0:
                break
            right = int(token == true)
            count = torch.tensor([1, right], dtype=torch.int32, device=state.new_hits.device)
            new_hits[kind, rows[kind], min(offset, OFFSETS - 1)] += count
            if kind == given:
                state.new_totals[origin] += count
            if not right:
                break


def fold_hits_torch(state: DraftState) -> None:
    """Add what is new to the counts, let them fade, and renew the chances."""
    counts = state.hit_counts + state.new_hits
    kept = MAX_TRIES / counts[..., :1].clamp(min=MAX_TRIES)
    state.hit_counts.copy_(counts * kept)
    state.hit_chances.copy_(state.hit_counts[..., 1] / state.hit_counts[..., 0])
    state.hit_worths.copy_(worths_of(state.hit_chances))
    state.totals.add_(state.new_totals)
    state.new_hits.zero_()
    state.new_totals.zero_()
