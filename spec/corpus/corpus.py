# mypy: allow-untyped-calls
"""Corpus: the answers of one namespace, with exact successor counts of every order up to 24.

Old answers are in a suffix array, the latest few thousand tokens in chains; when these are full
they are sorted and merged in. Both lie over one text in which every answer is BOS, tokens, END.
Removed answers are marked in the text, and leave it when they are an eighth of it. A token costs 4
bytes of text and 4 of suffix array, plus the room kept to grow into.

Decode steps read a corpus while it changes. Whatever takes time is therefore made beside what they
read: a merge writes a new suffix array, clearing away a new text as well. They are put in place
under the lock, in microseconds, at a moment when no step reads.
"""

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from reprise.spec.api.near_answer import IntArray
from reprise.spec.corpus.answer_table import POSITION, AnswerTable
from reprise.spec.corpus.chain import bucket_of, empty_heads, link_recent
from reprise.spec.corpus.suffix_array import mark_removed, merge_suffixes, narrow, sort_suffixes
from reprise.spec.corpus.text_moves import copy_into, give_back, kept_answers, move_entries
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import (
    BOS,
    CORPUS_FIELDS,
    CORPUS_GENERATION,
    CORPUS_LENGTH,
    CORPUS_ORDER,
    CORPUS_SORTED,
    CORPUS_TEXT,
    END,
    MAX_CORPUS_TOKEN,
    MAX_ORDER,
    RECENT_BEGIN,
    RECENT_CHAIN,
    RECENT_HEAD_MASK,
    RECENT_HEADS,
)

MAX_RECENT = 4096
FIRST_RECENT = 256
GROWTH = 1.15  # of the text; removed answers must have their share, see below, and answers to come
REMOVED_SHARE = 8
MAX_REMOVED = 512  # tokens of removed answers that are left in any text, however small
ROOM = MAX_ORDER + 2


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
    """Write the token after each position of `pattern` among the recent ones; return how many."""
    number, k = 0, pattern.shape[0]
    i = heads[bucket_of(pattern[k - 1], mask)]
    while i >= begin:
        match = 0
        while match < k and i - match >= begin and text[i - match] == pattern[k - 1 - match]:
            match += 1
        if match == k and text[i + 1] >= 0:
            found[number] = text[i + 1]
            number += 1
        i = chain[i - begin]
    return number


@compiled
def live_entries(text: IntArray, begin: int, end: int) -> IntArray:
    """The indices in [begin, end) of BOS and tokens of answers that are not removed."""
    found = np.empty(end - begin, np.int32)
    number = 0
    for i in range(begin, end):
        if text[i] >= 0 or (text[i] == BOS and text[i + 1] >= 0):
            found[number] = i
            number += 1
    return found[:number]


class Corpus:
    """The searchable answers of one namespace.

    One thread at a time may change it. Others may read it meanwhile, while they hold `lock`, which
    a change takes for moments only; None: there are no others.
    """

    __slots__ = (
        "_answers", "_chain", "_generation", "_heads", "_length", "_lock", "_order", "_recent",
        "_removed", "_row", "_text", "num_tokens",
    )  # fmt: skip

    def __init__(self, row: np.ndarray, *, lock: AbstractContextManager[Any] | None = None) -> None:
        """`row` [CORPUS_FIELDS] int64 is where compiled code will find this corpus."""
        if row.shape != (CORPUS_FIELDS,):
            raise ValueError(f"row: expected {CORPUS_FIELDS} fields, came shape {row.shape}")
        self._row = row
        self._lock = lock or threading.RLock()
        self._answers = AnswerTable()
        # Of zeros, as all texts here: in memory as it was found, a removed answer could be left.
        self._text = np.zeros(FIRST_RECENT + ROOM, np.int32)
        self._order = np.empty(0, np.int32)
        self._chain = np.empty(FIRST_RECENT, np.int32)
        self._heads = empty_heads(FIRST_RECENT)
        self._length = 0
        self._recent = 0
        self._removed = 0
        self._generation = 1
        self.num_tokens = 0
        """Tokens of the indexed answers."""
        self._publish()

    def __len__(self) -> int:
        return len(self._answers)

    def __contains__(self, answer_id: object) -> bool:
        return answer_id in self._answers

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays; the table of answer ids is beside them."""
        arrays = (self._text, self._order, self._chain, self._heads)
        return sum(a.nbytes for a in arrays) + self._answers.num_bytes

    def oldest(self) -> str:
        """The id of the answer that was added first; there is one."""
        return self._answers.oldest()

    def add(self, answer_id: str, tokens: IntArray) -> bool:
        """Index an answer; False if its id is there already or it cannot be told from a mark."""
        if answer_id in self._answers or not len(tokens) or tokens.max() > MAX_CORPUS_TOKEN:
            return False
        needed = len(tokens) + 2
        if self._length + needed + ROOM > len(self._text):
            self._move_text(needed)
        if self._length + needed - self._recent > MAX_RECENT:
            self._merge(self._length)
        begin, end = self._length, self._length + needed
        # Nobody reads beyond the length.
        self._text[begin] = BOS
        self._text[begin + 1 : end - 1] = tokens
        self._text[end - 1] = END
        if needed > MAX_RECENT:
            self._merge(end)
        else:
            self._link(end)
        self._answers.put(answer_id, begin, len(tokens))
        self.num_tokens += len(tokens)
        return True

    def fill(self, answer_ids: Sequence[str], texts: Sequence[bytes]) -> None:
        """Index the first answers, MAX_RECENT tokens at most, in one go and without the lock.

        texts: BOS, tokens, END of each, int32.
        """
        total = sum(map(len, texts)) // 4
        if total > MAX_RECENT or len(self._answers):
            raise ValueError(
                f"texts: expected up to {MAX_RECENT} tokens for an empty corpus, came {total} for "
                f"one of {len(self._answers)} answers"
            )
        size, end = FIRST_RECENT, 0
        for answer_id, text in zip(answer_ids, texts, strict=True):
            length = len(text) // 4
            self._answers.put(answer_id, end, length - 2)
            end += length
            size = chain_size(size, end)
        self._text = np.zeros(int(end * GROWTH) + MAX_REMOVED + ROOM, np.int32)
        self._text[:end] = np.frombuffer(b"".join(texts), np.int32)
        self._chain, self._heads = np.empty(size, np.int32), empty_heads(size)
        link_recent(self._text, self._chain, self._heads, len(self._heads) - 1, 0, 0, end)
        self._length, self.num_tokens = end, end - 2 * len(texts)
        self._publish()

    def remove(self, answer_id: str) -> bool:
        """Take an answer out, at once and for all orders; False if the id is unknown."""
        position = self._answers.pop(answer_id)
        if position is None:
            return False
        begin, length = position
        mark_removed(self._text, begin + 1, begin + 1 + length)
        self._removed += length + 2
        self.num_tokens -= length
        if self._removed > max(MAX_REMOVED, self._length // REMOVED_SHARE):
            self._move_text(0)
        return True

    def move(self, row: np.ndarray) -> None:
        """Publish to another row from now on, which holds the same: the corpus table has grown."""
        self._row = row

    def successor_counts(self, context: IntArray) -> dict[int, int]:
        """Exact counts of the tokens that follow `context` [k] int32, 1 <= k <= 24.

        BOS (-2) at the front of `context` asks for the beginnings of answers.
        """
        if not 1 <= len(context) <= MAX_ORDER:
            raise ValueError(f"context: expected 1 to {MAX_ORDER} tokens, came {len(context)}")
        counts: dict[int, int] = {}
        low, high = 0, len(self._order)
        for depth, token in enumerate(context):
            low, high = narrow(self._text, self._order, depth, low, high, token)
        following = self._text[self._order[low:high] + len(context)]
        found = np.zeros(MAX_RECENT, np.int32)
        recent = (self._text, self._chain, self._heads, len(self._heads) - 1, self._recent)
        number = count_recent(*recent, np.asarray(context, np.int32), found)
        for token in (*following[following >= 0].tolist(), *found[:number].tolist()):
            counts[token] = counts.get(token, 0) + 1
        return counts

    def _publish(self) -> None:
        row = self._row
        row[CORPUS_TEXT] = self._text.ctypes.data
        row[CORPUS_LENGTH] = len(self._text)
        row[CORPUS_ORDER] = self._order.ctypes.data
        row[CORPUS_SORTED] = len(self._order)
        row[RECENT_BEGIN] = self._recent
        row[RECENT_CHAIN] = self._chain.ctypes.data
        row[RECENT_HEADS] = self._heads.ctypes.data
        row[RECENT_HEAD_MASK] = len(self._heads) - 1
        row[CORPUS_GENERATION] = self._generation

    def _link(self, end: int) -> None:
        """Chain the text up to `end`, which may now be read."""
        recent, begin = self._recent, self._length
        chain, heads = self._chain, self._heads
        if end - recent <= len(chain):
            with self._lock:
                link_recent(self._text, chain, heads, len(heads) - 1, recent, begin, end)
                self._length = end
            return
        size = chain_size(len(chain), end - recent)
        chain, heads = np.empty(size, np.int32), empty_heads(size)
        link_recent(self._text, chain, heads, len(heads) - 1, recent, recent, end)
        with self._lock:
            self._chain, self._heads, self._length = chain, heads, end
            self._publish()

    def _merge(self, end: int) -> None:
        """Sort what is recent, up to `end`, into the suffix array."""
        if end == self._recent:
            return
        old = self._order
        added = sort_suffixes(self._text, live_entries(self._text, self._recent, end))
        order = np.empty(len(old) + len(added), np.int32)
        merge_suffixes(self._text, old, added, order)
        with self._lock:
            self._order, self._recent, self._length = order, end, end
            self._heads[:] = -1
            self._generation += 1
            self._publish()
        give_back(old)

    def _move_text(self, needed: int) -> None:
        """Make a text without the removed answers, and with room for `needed` more tokens."""
        live = self._length - self._removed
        text = np.zeros(int((live + needed) * GROWTH) + MAX_REMOVED + ROOM, np.int32)
        if self._removed:
            self._move_answers(text)
            return
        old = self._text
        copy_into(old[: self._length], text)
        with self._lock:
            self._text = text
            self._publish()
        give_back(old)

    def _move_answers(self, text: IntArray) -> None:
        """Move the answers that are left together, into `text`."""
        answers, old_text, old_order = self._answers, self._text, self._order
        sequence = answers.sequence[: answers.number]
        moved, spans = kept_answers(sequence, answers.positions, old_text, text)
        order = np.empty(len(old_order), np.int32)
        order = order[: move_entries(old_order, spans, moved, order)]
        recent = length = self._length - self._removed
        first = int(np.searchsorted(spans[:, 0], self._recent))
        if first < len(moved):
            recent = int(moved[first, POSITION])
        chain, heads = np.empty_like(self._chain), np.full_like(self._heads, -1)
        link_recent(text, chain, heads, len(heads) - 1, recent, recent, length)
        with self._lock:
            self._text, self._order, self._chain, self._heads = text, order, chain, heads
            self._length, self._recent, self._removed = length, recent, 0
            self._generation += 1
            self._publish()
        answers.move(moved)
        give_back(old_text)
        give_back(old_order)


def chain_size(size: int, recent: int) -> int:
    """Places of a chain of `size` that has to hold `recent` of them."""
    return size if recent <= size else min(MAX_RECENT, max(2 * size, recent))
