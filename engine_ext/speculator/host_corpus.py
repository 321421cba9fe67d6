"""A corpus as the host keeps it for the device: its text, sorted but for the latest answers."""

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from reprise.kernels.draft.constants import BOS, END, REMOVED
from reprise.spec.corpus.suffix_array import merge_suffixes, sort_suffixes

IntArray = NDArray[np.int32]

MIN_ROOM, MAX_ROOM = 256, 4096
"""Tokens of recent answers that a corpus has room for before they are sorted in, as many as there
are sorted ones; bounds of that."""
_REMOVED_SHARE = 8


class HostCorpus:
    """The answers of one namespace; one thread at a time."""

    def __init__(self) -> None:
        self._begins: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._num_removed = 0
        self.text = np.zeros(0, np.int32)
        """[t] int32: BOS, tokens, END of each answer; those of removed answers are marked."""
        self.order = np.zeros(0, np.int32)
        """[s] int32: suffix array over `text[:recent_begin]`."""
        self.recent_begin = 0

    def __len__(self) -> int:
        return len(self._begins)

    def __contains__(self, answer_id: object) -> bool:
        return answer_id in self._begins

    @property
    def num_tokens(self) -> int:
        """Tokens of the answers that are not removed."""
        return len(self.text) - self._num_removed - 2 * len(self._begins)

    @property
    def num_recent_tokens(self) -> int:
        """Tokens of the text that are not sorted."""
        return len(self.text) - self.recent_begin

    @property
    def room(self) -> int:
        """Tokens of recent answers that there is room for beside those that are sorted."""
        return min(MAX_ROOM, max(MIN_ROOM, self.recent_begin))

    def append(self, answer_id: str, tokens: IntArray) -> None:
        """Add an answer, unsorted."""
        self._begins[answer_id] = len(self.text) + 1, len(tokens)
        self.text = np.concatenate((self.text, [BOS], tokens, [END]), dtype=np.int32)

    def remove(self, answer_id: str) -> tuple[int, IntArray]:
        """Mark an answer's tokens; return where they are in the text, and what is there now."""
        begin, length = self._begins.pop(answer_id)
        self.text[begin : begin + length] += REMOVED
        self._num_removed += length + 2
        return begin, self.text[begin : begin + length]

    def remove_oldest(self, max_tokens: int) -> None:
        """Mark the oldest answers until at most so many tokens are left."""
        while self._begins and self.num_tokens > max_tokens:
            self.remove(next(iter(self._begins)))

    def sort(self) -> None:
        """Have the suffix array cover all of the text; removed answers leave it where they are
        many."""
        if self._num_removed * _REMOVED_SHARE > len(self.text):
            self._compact()
        recent = self.text[self.recent_begin :]
        entries = (np.flatnonzero(recent != END) + self.recent_begin).astype(np.int32)
        added = sort_suffixes(self.text, entries)
        order = np.empty(len(self.order) + len(added), np.int32)
        merge_suffixes(self.text, self.order, added, order)
        self.order, self.recent_begin = order, len(self.text)

    @classmethod
    def warm_up(cls) -> None:
        """Load or make the compiled code: at the first answer that would hold up steps, which share
        the interpreter with the thread that sorts."""
        corpus = cls()
        for number in range(2):
            corpus.append(str(number), np.arange(3, dtype=np.int32))
            corpus.sort()

    def _compact(self) -> None:
        old, spans = self.text, list(self._begins.items())
        parts = [old[begin - 1 : begin + length + 1] for _, (begin, length) in spans]
        self.text = np.concatenate(parts) if parts else np.zeros(0, np.int32)
        self.order, self.recent_begin, self._num_removed = np.zeros(0, np.int32), 0, 0
        next_begin = 1
        for answer_id, (_, length) in spans:
            self._begins[answer_id] = next_begin, length
            next_begin += length + 2
