# mypy: allow-untyped-calls
"""Corpus: the answers of one namespace, with exact successor counts of every order up to 24.

Old answers are in a suffix array, the latest few thousand tokens in chains; when these are full
they are sorted and merged in. Both lie over one text in which every answer is BOS, tokens, END.
A token costs 4 bytes of text and 4 of suffix array, plus the room kept to grow into.
"""

import numpy as np

from .chain import bucket_of, empty_heads, link_recent
from .compiled import compiled
from .layout import (
    BOS,
    CORPUS_FIELDS,
    CORPUS_GENERATION,
    CORPUS_LENGTH,
    CORPUS_ORDER,
    CORPUS_SORTED,
    CORPUS_TEXT,
    END,
    MAX_ORDER,
    RECENT_BEGIN,
    RECENT_CHAIN,
    RECENT_HEAD_MASK,
    RECENT_HEADS,
)
from .near_answer import IntArray
from .suffix_array import drop_suffixes, merge_suffixes, narrow, sort_suffixes

MAX_RECENT = 4096
GROWTH = 1.25


@compiled
def count_recent(
    text: IntArray,
    chain: IntArray,
    heads: IntArray,
    mask: int,
    begin: int,
    pattern: IntArray,  # [k] int32
    found: IntArray,  # [MAX_RECENT] int32: receives the successors
) -> int:
    """Write the token after each place of `pattern` among the recent ones; return how many."""
    number, k = 0, pattern.shape[0]
    i = heads[bucket_of(pattern[k - 1], mask)]
    while i >= begin:
        match = 0
        while match < k and i - match >= begin and text[i - match] == pattern[k - 1 - match]:
            match += 1
        if match == k and text[i + 1] != END:
            found[number] = text[i + 1]
            number += 1
        i = chain[i - begin]
    return number


@compiled
def live_entries(text: IntArray, begin: int, end: int) -> IntArray:
    """The indices in [begin, end) that are not END (removed answers are all END)."""
    found = np.empty(end - begin, np.int32)
    number = 0
    for i in range(begin, end):
        if text[i] != END:
            found[number] = i
            number += 1
    return found[:number]


@compiled
def shift_entries(order: IntArray, size: int, starts: IntArray, shifts: IntArray) -> None:
    """Move each entry down by the shift of its answer. starts, shifts: [answers] int32."""
    for i in range(size):
        answer = np.searchsorted(starts, order[i], side="right") - 1
        order[i] -= shifts[answer]


class Corpus:
    """The searchable answers of one namespace. Not thread-safe: the provider's lock guards it."""

    def __init__(self, row: np.ndarray, *, max_bytes: int) -> None:
        """`row` [CORPUS_FIELDS] int64 is where compiled code will find this corpus."""
        if row.shape != (CORPUS_FIELDS,):
            raise ValueError(f"row: expected {CORPUS_FIELDS} fields, came shape {row.shape}")
        self._row = row
        self._max_bytes = max_bytes
        self._answers: dict[str, tuple[int, int]] = {}
        self._text = np.full(256, END, np.int32)
        self._order = np.zeros(0, np.int32)
        self._chain = np.zeros(256, np.int32)
        self._heads = empty_heads(256)
        self._length = 0
        self._sorted = 0
        self._recent = 0
        self._dead = 0
        self._generation = 1
        self._publish()

    def __len__(self) -> int:
        return len(self._answers)

    @property
    def num_tokens(self) -> int:
        """Tokens of the indexed answers."""
        return sum(length for _, length in self._answers.values())

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays; the table of answer ids is beside them."""
        return sum(a.nbytes for a in (self._text, self._order, self._chain, self._heads))

    def add(self, answer_id: str, tokens: IntArray) -> bool:
        """Index an answer; False if its id is there already or it does not fit the byte bound."""
        needed = len(tokens) + 2
        if answer_id in self._answers or not len(tokens) or 16 * needed > self._max_bytes:
            return False
        while self._answers and 12 * (self._length - self._dead + needed) > self._max_bytes:
            self._evict()
        if self._length + needed - self._recent > MAX_RECENT:
            self._merge_recent()
        self._make_room(needed)
        begin, end = self._length, self._length + needed
        self._text[begin] = BOS
        self._text[begin + 1 : end - 1] = tokens
        self._text[end - 1] = END
        if needed > MAX_RECENT:
            self._recent = end
            self._merge_entries(begin, end)
        else:
            self._link(begin, end)
        self._length = end
        self._answers[answer_id] = (begin, len(tokens))
        self._publish()
        return True

    def remove(self, answer_id: str) -> bool:
        """Take an answer out, at once and for all orders; False if the id is unknown."""
        place = self._answers.pop(answer_id, None)
        if place is None:
            return False
        begin, end = place[0], place[0] + place[1] + 2
        if begin < self._recent:
            self._sorted = drop_suffixes(self._order, self._sorted, begin, end)
            self._generation += 1
        self._text[begin:end] = END
        self._dead += end - begin
        if self._dead > max(MAX_RECENT, self._length // 4):
            self._compact()
        self._publish()
        return True

    def move(self, row: np.ndarray) -> None:
        """Publish to another row from now on: the corpus table has grown."""
        self._row = row
        self._publish()

    def successor_counts(self, context: IntArray) -> dict[int, int]:
        """Exact counts of the tokens that follow `context` [k] int32, 1 <= k <= 24.

        BOS (-2) at the front of `context` asks for the beginnings of answers.
        """
        if not 1 <= len(context) <= MAX_ORDER:
            raise ValueError(f"context: expected 1 to {MAX_ORDER} tokens, came {len(context)}")
        counts: dict[int, int] = {}
        low, high = 0, self._sorted
        for depth, token in enumerate(context):
            low, high = narrow(self._text, self._order, depth, low, high, token)
        for entry in self._order[low:high]:
            token = int(self._text[entry + len(context)])
            if token != END:
                counts[token] = counts.get(token, 0) + 1
        found = np.zeros(MAX_RECENT, np.int32)
        recent = (
            self._text,
            self._chain,
            self._heads,
            len(self._heads) - 1,
            self._recent,
        )
        number = count_recent(*recent, np.asarray(context, np.int32), found)
        for token in found[:number].tolist():
            counts[token] = counts.get(token, 0) + 1
        return counts

    def _publish(self) -> None:
        row = self._row
        row[CORPUS_TEXT] = self._text.ctypes.data
        row[CORPUS_LENGTH] = len(self._text)
        row[CORPUS_ORDER] = self._order.ctypes.data
        row[CORPUS_SORTED] = self._sorted
        row[RECENT_BEGIN] = self._recent
        row[RECENT_CHAIN] = self._chain.ctypes.data
        row[RECENT_HEADS] = self._heads.ctypes.data
        row[RECENT_HEAD_MASK] = len(self._heads) - 1
        row[CORPUS_GENERATION] = self._generation

    def _make_room(self, needed: int) -> None:
        if self._length + needed + MAX_ORDER + 2 > len(self._text):
            size = int((self._length + needed) * GROWTH) + MAX_ORDER + 2
            text = np.full(size, END, np.int32)
            text[: self._length] = self._text[: self._length]
            self._text = text

    def _link(self, begin: int, end: int) -> None:
        recent = end - self._recent
        if recent > len(self._chain) and len(self._chain) < MAX_RECENT:
            size = min(MAX_RECENT, max(2 * len(self._chain), recent))
            self._chain = np.zeros(size, np.int32)
            self._heads = empty_heads(size)
            begin = self._recent
        heads = self._heads
        link_recent(self._text, self._chain, heads, len(heads) - 1, self._recent, begin, end)

    def _merge_recent(self) -> None:
        begin = self._recent
        self._recent = self._length
        self._heads[:] = -1
        self._merge_entries(begin, self._length)

    def _merge_entries(self, begin: int, end: int) -> None:
        added = sort_suffixes(self._text, live_entries(self._text, begin, end))
        size = self._sorted + len(added)
        if size > len(self._order):
            order = np.zeros(int(size * GROWTH), np.int32)
            order[: self._sorted] = self._order[: self._sorted]
            self._order = order
        merge_suffixes(self._text, self._order, self._sorted, added)
        self._sorted = size
        self._generation += 1

    def _evict(self) -> None:
        """Drop the oldest answers, a sixteenth of the tokens at once, in one pass."""
        target = (self._length - self._dead) // 16
        end = dropped = 0
        for answer_id, (begin, length) in list(self._answers.items()):
            if dropped > target:
                break
            del self._answers[answer_id]
            end = max(end, begin + length + 2)
            self._text[begin : begin + length + 2] = END
            dropped += length + 2
        self._sorted = drop_suffixes(self._order, self._sorted, 0, min(end, self._recent))
        self._dead += dropped
        self._compact()

    def _compact(self) -> None:
        """Close the gaps that removed answers left in the text."""
        self._merge_recent()
        places = sorted(self._answers.items(), key=lambda item: item[1][0])
        live = sum(length + 2 for _, (_, length) in places)
        text = np.full(int(live * GROWTH) + MAX_ORDER + 2 + 256, END, np.int32)
        starts = np.zeros(max(1, len(places)), np.int32)
        shifts = np.zeros_like(starts)
        at = 0
        for i, (answer_id, (begin, length)) in enumerate(places):
            starts[i], shifts[i] = begin, begin - at
            text[at : at + length + 2] = self._text[begin : begin + length + 2]
            self._answers[answer_id] = (at, length)
            at += length + 2
        shift_entries(self._order, self._sorted, starts, shifts)
        self._order = self._order[: int(self._sorted * GROWTH)].copy()
        self._text, self._length, self._recent, self._dead = text, at, at, 0
        self._generation += 1
