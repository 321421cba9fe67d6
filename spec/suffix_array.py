# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""A suffix array over answers: sort, merge, narrow a range by one token, count successors.

Entries are indices into `text`, sorted by the up to MAX_ORDER + 1 tokens that follow from there,
an END ending the comparison; ties by index. The entries that begin with a pattern are a range, and
those that go on with a given token are a range within it.
"""

import numpy as np

from .compiled import compiled
from .layout import END, MAX_ORDER, SUCCESSORS
from .near_answer import IntArray

SAMPLED = 24


@compiled
def precedes(text: IntArray, a: int, b: int) -> bool:
    """Whether the suffix at `a` sorts before the one at `b`."""
    for depth in range(MAX_ORDER + 1):
        x, y = text[a + depth], text[b + depth]
        if x != y:
            return bool(x < y)
        if x == END:
            break
    return a < b


@compiled
def sort_suffixes(text: IntArray, entries: IntArray) -> IntArray:
    """A sorted copy of `entries` [m] int32: merge sort from the bottom up."""
    m = entries.shape[0]
    source, target = entries.copy(), np.empty_like(entries)
    width = 1
    while width < m:
        for begin in range(0, m, 2 * width):
            middle, end = min(begin + width, m), min(begin + 2 * width, m)
            i, j = begin, middle
            for k in range(begin, end):
                if i < middle and (j >= end or precedes(text, source[i], source[j])):
                    target[k] = source[i]
                    i += 1
                else:
                    target[k] = source[j]
                    j += 1
        source, target = target, source
        width *= 2
    return source


@compiled
def merge_suffixes(text: IntArray, order: IntArray, size: int, added: IntArray) -> None:
    """Merge sorted `added` [m] into order[:size], in place, from the back; room for m is needed."""
    last, hole = size, size + added.shape[0]
    for k in range(added.shape[0] - 1, -1, -1):
        low, high = 0, last
        while low < high:
            middle = (low + high) // 2
            if precedes(text, order[middle], added[k]):
                low = middle + 1
            else:
                high = middle
        for i in range(last - 1, low - 1, -1):
            hole -= 1
            order[hole] = order[i]
        last = low
        hole -= 1
        order[hole] = added[k]


@compiled
def drop_suffixes(order: IntArray, size: int, begin: int, end: int) -> int:
    """Take the entries in [begin, end) out of order[:size]; return the new size."""
    kept = 0
    for i in range(size):
        entry = order[i]
        if entry < begin or entry >= end:
            order[kept] = entry
            kept += 1
    return kept


@compiled
def narrow(text, order, depth, low, high, token):
    """The range within order[low:high], which share `depth` tokens, that goes on with `token`."""
    a, b = low, high
    while a < b:
        middle = (a + b) // 2
        if text[order[middle] + depth] < token:
            a = middle + 1
        else:
            b = middle
    first, b = a, high
    step = 1
    while a + step < b and text[order[a + step] + depth] <= token:
        a += step
        step *= 2
    b = min(b, a + step)
    while a < b:
        middle = (a + b) // 2
        if text[order[middle] + depth] <= token:
            a = middle + 1
        else:
            b = middle
    return first, a


@compiled
def successors(text, order, depth, low, high, tokens, counts):
    """The most frequent tokens after order[low:high], whose entries share `depth` tokens.

    Fills `tokens` and `counts`, both [SUCCESSORS] int32; returns how many. Up to SAMPLED entries
    are all counted. A longer range is sampled at even distances: as it is sorted by what follows,
    no token with a share of 1 / SAMPLED can be missed, and its count is right to within that.
    """
    size = high - low
    looks = min(size, SAMPLED)
    number, run, previous = 0, 0, END
    for i in range(looks + 1):
        token = END
        if i < looks:
            index = low + i if size <= SAMPLED else low + (2 * i + 1) * size // (2 * SAMPLED)
            token = text[order[index] + depth]
            if token == previous:
                run += 1
                continue
        if previous != END:
            count = run if size <= SAMPLED else max(1, run * size // SAMPLED)
            place = number if number < SUCCESSORS else SUCCESSORS - 1
            if number < SUCCESSORS or count > counts[place]:
                while place > 0 and counts[place - 1] < count:
                    tokens[place], counts[place] = tokens[place - 1], counts[place - 1]
                    place -= 1
                tokens[place], counts[place] = previous, count
                number = min(number + 1, SUCCESSORS)
        previous, run = token, 1
    return number
