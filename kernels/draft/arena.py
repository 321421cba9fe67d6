"""Where corpora lie in the device's arena: bookkeeping on the host, which writes nothing itself.

A corpus has one region: its text, with room for answers to come, and then its suffix array. A new
version is placed beside the one in place, whose region is free as soon as the row that names it has
been replaced. As all writes are ordered on the stream that drafts, no step reads a region while it
is given to another.
"""

from __future__ import annotations

from bisect import insort
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.kernels.draft.constants import BOS, CORPUS_FIELDS, END, TEXT_BEGIN, TEXT_LENGTH

IntArray = npt.NDArray[np.int32]


class ArenaWrites(NamedTuple):
    """What the host has to write, in this order: parts of the arena, then the corpus's row."""

    parts: list[tuple[int, IntArray]]
    """Where in the arena, and the values there."""
    row: int
    fields: IntArray
    """[CORPUS_FIELDS] int32: the new content of `corpora[row]`."""


class _Region(NamedTuple):
    row: int
    begin: int
    size: int
    fields: IntArray  # [CORPUS_FIELDS]
    text_capacity: int


class CorpusArena:
    """The regions of all corpora in an arena of a fixed size; one thread at a time."""

    def __init__(self, *, num_corpora: int, arena_tokens: int) -> None:
        """Sizes as in `DraftState.create`."""
        self._rows = list(range(num_corpora))[::-1]
        self._free = [(0, arena_tokens)]  # (begin, size), by begin, never adjacent
        self._regions: dict[str, _Region] = {}
        self._in_place: dict[str, _Region] = {}  # that rows on the device name

    def __contains__(self, name: object) -> bool:
        return name in self._regions

    def row(self, name: str) -> int:
        """The row of the table of corpora that a request of this namespace names; -1: none."""
        region = self._regions.get(name)
        return -1 if region is None else region.row

    def put(
        self,
        name: str,
        text: IntArray,  # [t] int32: BOS, tokens, END of each answer
        order: IntArray,  # [s] int32: suffix array over text[:recent_begin]
        *,
        recent_begin: int,
        room: int,
    ) -> ArenaWrites | None:
        """Place a corpus, or its new version, with `room` for as many tokens of recent answers;
        None, and nothing has changed, where there is no region or row for it. Where its latest
        version is not in place yet, this one may lie there."""
        old = self._regions.get(name)
        if old is None and not self._rows:
            return None
        capacity = len(text) + room
        free_before = list(self._free)
        if old is not None and not self._is_in_place(name):
            self._give_back(old)
        begin = self._take(capacity + len(order))
        if begin < 0:
            self._free = free_before
            return None
        row = self._rows.pop() if old is None else old.row
        sizes = (begin, len(text), begin + capacity, len(order), recent_begin)
        fields = np.array(sizes, np.int32)
        self._regions[name] = _Region(row, begin, capacity + len(order), fields, capacity)
        return ArenaWrites([(begin, text), (begin + capacity, order)], row, fields)

    def settle(self, name: str) -> None:
        """Take note that a corpus's latest version is in place: it is written, and so is its row.
        The region of the one before is free."""
        if name in self._in_place and not self._is_in_place(name):
            self._give_back(self._in_place[name])
        self._in_place[name] = self._regions[name]

    def empty(self, name: str) -> int:
        """Give all regions of a corpus back; return its row, which it keeps, and which has to be
        cleared before anything is written."""
        self._give_back_all(name)
        region = self._regions[name]
        self._regions[name] = _Region(region.row, 0, 0, np.zeros(CORPUS_FIELDS, np.int32), 0)
        return region.row

    def append(self, name: str, tokens: IntArray) -> ArenaWrites | None:
        """Add an answer behind the recent ones; None, and nothing has changed, without room."""
        region = self._regions[name]
        length = int(region.fields[TEXT_LENGTH])
        if length + len(tokens) + 2 > region.text_capacity:
            return None
        answer = np.concatenate(([BOS], tokens, [END]), dtype=np.int32)
        fields = region.fields.copy()
        fields[TEXT_LENGTH] += len(answer)
        self._regions[name] = region._replace(fields=fields)
        return ArenaWrites([(int(fields[TEXT_BEGIN]) + length, answer)], region.row, fields)

    def rewrite(self, name: str, begin: int, tokens: IntArray) -> ArenaWrites:
        """Replace the text from index `begin` on, as where removal has marked tokens."""
        region = self._regions[name]
        if begin < 0 or begin + len(tokens) > region.fields[TEXT_LENGTH]:
            raise ValueError(
                f"expected tokens within the {region.fields[TEXT_LENGTH]} of the text, "
                f"came {len(tokens)} from {begin} on"
            )
        parts = [(int(region.fields[TEXT_BEGIN]) + begin, tokens)]
        return ArenaWrites(parts, region.row, region.fields)

    def drop(self, name: str) -> ArenaWrites:
        """Forget a corpus that no request names any more."""
        self._give_back_all(name)
        region = self._regions.pop(name)
        self._rows.append(region.row)
        return ArenaWrites([], region.row, np.zeros(CORPUS_FIELDS, np.int32))

    def _is_in_place(self, name: str) -> bool:
        """Whether the latest version of a corpus lies where the row on the device leads to."""
        in_place = self._in_place.get(name)
        return in_place is not None and in_place.begin == self._regions[name].begin

    def _give_back_all(self, name: str) -> None:
        if not self._is_in_place(name):
            self._give_back(self._regions[name])
        if name in self._in_place:
            self._give_back(self._in_place.pop(name))

    def _take(self, size: int) -> int:
        """The beginning of a region of this size, from the smallest that is free; -1: none."""
        fitting = [(free, begin) for begin, free in self._free if free >= size]
        if not fitting:
            return -1
        free, begin = min(fitting)
        self._free.remove((begin, free))
        if free > size:
            insort(self._free, (begin + size, free - size))
        return begin

    def _give_back(self, region: _Region) -> None:
        if not region.size:
            return
        insort(self._free, (region.begin, region.size))
        joined = self._free[:1]
        for begin, size in self._free[1:]:
            last, length = joined[-1]
            if last + length == begin:
                joined[-1] = (last, length + size)
            else:
                joined.append((begin, size))
        self._free = joined
