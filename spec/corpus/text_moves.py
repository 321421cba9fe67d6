# mypy: allow-untyped-calls
"""Moving a corpus's answers together, into a new text and a new suffix array.

The old ones stay as they are, so that drafting can go on with them meanwhile.
"""

import numpy as np
from numba import types

from reprise.spec.api.near_answer import IntArray
from reprise.spec.corpus.answer_table import BEGIN, LENGTH, POSITION, ROW
from reprise.spec.runtime.compiled import compiled

BLOCK_BITS = 6
_PAGE = 4096
_LARGE_BYTES = 1 << 20
_DONTNEED = 4
_madvise = types.ExternalFunction("madvise", types.int32(types.uintp, types.uintp, types.int32))


@compiled
def kept_answers(
    sequence: IntArray,  # [n, 2] int32
    positions: IntArray,  # [rows, 2] int32
    text: IntArray,
    moved_text: IntArray,  # out: the answers that are still there, one after the other
) -> tuple[IntArray, IntArray]:
    """Copy them; returns their new sequence and where they began and ended before, both [m, 2]."""
    moved = np.empty_like(sequence)
    spans = np.empty_like(sequence)
    number = at = 0
    for i in range(sequence.shape[0]):
        row, begin = sequence[i, ROW], sequence[i, POSITION]
        if positions[row, BEGIN] == begin:
            end = begin + positions[row, LENGTH] + 2
            moved_text[at : at + end - begin] = text[begin:end]
            moved[number, ROW], moved[number, POSITION] = row, at
            spans[number, 0], spans[number, 1] = begin, end
            number += 1
            at += end - begin
    return moved[:number].copy(), spans[:number]


@compiled
def move_entries(
    order: IntArray,  # [n] int32
    spans: IntArray,  # [m, 2] int32: begin and end of the answers that are still there
    moved: IntArray,  # [m, 2] int32: their new sequence
    moved_order: IntArray,  # out: the entries of these answers, in the same order
) -> int:
    """Where the answers' entries lie in the new text; returns how many they are."""
    count = spans.shape[0]
    length = spans[count - 1, 1] if count else np.int64(0)
    # For each block of the old text the first answer that ends in it or beyond: a short way from
    # an entry to its answer (a binary search for each took ten times as long).
    firsts = np.empty((length >> BLOCK_BITS) + 1, np.int32)
    answer = 0
    for block in range(firsts.shape[0]):
        while answer < count and spans[answer, 1] <= block << BLOCK_BITS:
            answer += 1
        firsts[block] = answer
    number = 0
    for i in range(order.shape[0]):
        entry = order[i]
        if entry >= length:
            continue
        answer = firsts[entry >> BLOCK_BITS]
        while spans[answer, 1] <= entry:
            answer += 1
        if entry >= spans[answer, 0]:
            moved_order[number] = entry - spans[answer, 0] + moved[answer, POSITION]
            number += 1
    return number


@compiled
def copy_into(source: IntArray, target: IntArray) -> None:
    """Copy all of source [n] to the front of target, without the interpreter lock."""
    target[: source.shape[0]] = source


@compiled
def give_back(array: IntArray) -> None:
    """Return the memory of a large array that nothing reads any more to the system, but for the
    rest of two pages. numpy does so with the interpreter lock held."""
    if array.nbytes < _LARGE_BYTES:
        return
    begin = (array.ctypes.data + _PAGE - 1) & ~(_PAGE - 1)
    end = (array.ctypes.data + array.nbytes) & ~(_PAGE - 1)
    if end > begin:
        _madvise(begin, end - begin, _DONTNEED)
