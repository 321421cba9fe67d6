"""What the corpora's part of the device's memory is to become, until steps have written it.

The thread that learns puts it here, as plain arrays: it asks nothing of the device. Of each corpus
one version waits at most, so that what waits is no more than the device has, however long no step
comes. A step writes so much of it, and the row that names a corpus only when all of that is there.
"""

from collections import OrderedDict, deque
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reprise.engine_ext.speculator.upload import prepare
from reprise.kernels.draft.arena import ArenaWrites
from reprise.kernels.draft.state import DraftState

IntArray = NDArray[np.int32]

STEP_TOKENS = 1 << 17
"""A step writes 512 KiB of the arena at most, which a core copies in some 40 us."""
_STEP_PARTS = 32
"""And so many parts of it."""
_JOINED_TOKENS = 4096
"""Parts that lie side by side are joined up to this."""


class _Waiting(NamedTuple):
    row: int
    fields: IntArray
    """Of the row, when all parts are there."""
    parts: deque[tuple[int, IntArray]]
    """Where in the arena, and the values there; written in this order."""

    def add(self, begin: int, values: IntArray) -> None:
        if self.parts:
            last_begin, last = self.parts[-1]
            joined = len(last) + len(values)
            if last_begin + len(last) == begin and joined <= _JOINED_TOKENS:
                self.parts[-1] = last_begin, np.concatenate((last, values))
                return
        if len(values):
            self.parts.append((begin, values))


class WaitingWrites:
    """Of all corpora; one thread at a time, and `send` in the one that launches steps.

    The arrays that are handed in must not change any more.
    """

    def __init__(self, state: DraftState) -> None:
        self._state = state
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._table = np.zeros(tuple(state.corpora.shape), np.int32)
        self._is_table_sent = True

    def __len__(self) -> int:
        """Corpora and the table of their rows, as far as they are still to be written."""
        return len(self._waiting) + (not self._is_table_sent)

    def replace(self, namespace: str, writes: ArenaWrites) -> None:
        """Have a corpus written as a whole, and nothing that waited of it."""
        waiting = _Waiting(writes.row, writes.fields, deque())
        for begin, values in writes.parts:
            waiting.add(begin, values)
        self._waiting[namespace] = waiting

    def extend(self, namespace: str, writes: ArenaWrites) -> None:
        """Have more of a corpus written, behind what waits of it."""
        waiting = self._waiting.get(namespace)
        parts = deque() if waiting is None else waiting.parts
        self._waiting[namespace] = waiting = _Waiting(writes.row, writes.fields, parts)
        for begin, values in writes.parts:
            waiting.add(begin, values)

    def overwrite(self, namespace: str, writes: ArenaWrites) -> None:
        """Have a part of a corpus overwritten, before others, and the corpus not drafted from
        until it is: what is there must not be."""
        self.extend(namespace, writes)
        self._waiting.move_to_end(namespace, last=False)
        self.hide(namespace)

    def hide(self, namespace: str) -> None:
        """Have a corpus that waits not drafted from until all of it is there."""
        if namespace in self._waiting:
            self._clear_row(self._waiting[namespace].row)

    def drop(self, namespace: str, row: int) -> None:
        """Have a corpus no more drafted from, and nothing written that waited of it; -1: it has no
        row."""
        self._waiting.pop(namespace, None)
        if row >= 0:
            self._clear_row(row)

    def send(self) -> list[tuple[str, int]]:
        """Write as much as a step may; return the corpora that are whole now, and their rows.

        Where it fails, what is left waits for the next call.
        """
        # Before the parts: they may lie where a row led that must not be drafted from any more.
        if not self._is_table_sent:
            self._send_table(self._table)
        self._send_parts()
        whole = [(name, each) for name, each in self._waiting.items() if not each.parts]
        if whole:
            table = self._table.copy()
            for _, each in whole:
                table[each.row] = each.fields
            self._send_table(table)
        for namespace, _ in whole:
            del self._waiting[namespace]
        return [(namespace, each.row) for namespace, each in whole]

    def _clear_row(self, row: int) -> None:
        self._table[row] = 0
        self._is_table_sent = False

    def _send_table(self, table: IntArray) -> None:
        """All rows: they are small, and each write takes its time."""
        prepare(self._state.corpora, table).enqueue()
        self._table = table
        self._is_table_sent = True

    def _send_parts(self) -> None:
        for waiting, begin, values in self._next_parts():
            prepare(self._state.arena[begin : begin + len(values)], values).enqueue()
            _, part = waiting.parts.popleft()
            if len(values) < len(part):
                waiting.parts.appendleft((begin + len(values), part[len(values) :]))

    def _next_parts(self) -> list[tuple[_Waiting, int, IntArray]]:
        """Return what a step writes: the corpus, where, and the values."""
        chosen, room = [], STEP_TOKENS
        for waiting in self._waiting.values():
            for begin, values in waiting.parts:
                chosen.append((waiting, begin, values[:room]))
                room -= len(values[:room])
                if room == 0 or len(chosen) == _STEP_PARTS:
                    return chosen
        return chosen
