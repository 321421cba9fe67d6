# mypy: allow-untyped-calls
"""Where the answers of a corpus lie in its text, and which of them is the oldest."""

import numpy as np

from reprise.spec.api.near_answer import IntArray
from reprise.spec.runtime.compiled import compiled

FIRST_ANSWERS = 16
BEGIN, LENGTH = range(2)
ROW, POSITION = range(2)


@compiled
def first_kept(sequence: IntArray, begin: int, end: int, positions: IntArray) -> int:
    """The first index in [begin, end) of an answer that is still there; `end` if there is none."""
    while begin < end and positions[sequence[begin, ROW], BEGIN] != sequence[begin, POSITION]:
        begin += 1
    return begin


@compiled
def move_positions(sequence: IntArray, positions: IntArray) -> None:
    """Write the beginnings of `sequence` [n, 2] into `positions` [rows, 2]."""
    for i in range(sequence.shape[0]):
        positions[sequence[i, ROW], BEGIN] = sequence[i, POSITION]


class AnswerTable:
    """Answers by id, and by age. Nothing here takes time that grows with their number, but for
    copies of arrays in a block; what moves them is compiled (`text_moves.py`)."""

    __slots__ = ("_free", "_ids", "_oldest", "_rows", "number", "positions", "sequence")

    def __init__(self) -> None:
        self._rows: dict[str, int] = {}
        self._ids: list[str] = []  # by row; "" where it is free
        self._free: list[int] = []
        self._oldest = 0
        self.positions = np.zeros((FIRST_ANSWERS, 2), np.int32)
        """[rows, 2] int32: where the answer begins in the text, -1 for none, and its tokens."""
        self.sequence = np.zeros((FIRST_ANSWERS, 2), np.int32)
        """[n, 2] int32: row and beginning of each answer in the text, oldest first, of which
        `number` are in use. Where the row's answer begins elsewhere, this one was removed."""
        self.number = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, answer_id: object) -> bool:
        return answer_id in self._rows

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.positions.nbytes + self.sequence.nbytes

    def put(self, answer_id: str, begin: int, length: int) -> None:
        """Add an answer of so many tokens that lies behind all others."""
        if self._free:
            row = self._free.pop()
            self._ids[row] = answer_id
        else:
            row = len(self._ids)
            if row == len(self.positions):
                self.positions = _grown(self.positions)
            self._ids.append(answer_id)
        if self.number == len(self.sequence):
            self.sequence = _grown(self.sequence)
        self.positions[row] = begin, length
        self.sequence[self.number] = row, begin
        self.number += 1
        self._rows[answer_id] = row

    def pop(self, answer_id: str) -> tuple[int, int] | None:
        """Forget an answer; returns where it begins and its tokens, None if the id is unknown."""
        row = self._rows.pop(answer_id, None)
        if row is None:
            return None
        begin, length = self.positions[row].tolist()
        self.positions[row] = -1, 0
        self._ids[row] = ""
        self._free.append(row)
        return begin, length

    def position_of(self, answer_id: str) -> tuple[int, int]:
        """Where an answer begins, and its tokens."""
        begin, length = self.positions[self._rows[answer_id]].tolist()
        return begin, length

    def oldest(self) -> str:
        """The id of the answer that was put first; there is one."""
        self._oldest = first_kept(self.sequence, self._oldest, self.number, self.positions)
        return self._ids[int(self.sequence[self._oldest, ROW])]

    def move(self, sequence: IntArray) -> None:
        """The answers now lie where `sequence` [number, 2] says, which names them all."""
        move_positions(sequence, self.positions)
        self.sequence, self.number, self._oldest = sequence, len(sequence), 0


def _grown(array: IntArray) -> IntArray:
    """A copy with room for half as many rows again."""
    grown = np.zeros((max(FIRST_ANSWERS, len(array) + len(array) // 2), 2), np.int32)
    grown[: len(array)] = array
    return grown
