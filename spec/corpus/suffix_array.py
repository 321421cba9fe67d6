# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""A suffix array over answers: sort, merge, narrow a range by one token, count successors.

Entries are indices into `text`, sorted by the up to MAX_ORDER + 1 tokens that follow from there,
an END ending the comparison; ties by index. The entries that begin with a pattern are a range, and
those that go on with a given token are a range within it.

(Manber and Myers, "Suffix arrays: a new method for on-line string searches", 1993.)

A removed answer leaves its entries where they are and only marks its tokens (`mark_removed`). A
search takes them for what they were, so that the order stays right, and what is counted, the token
after the pattern, says by itself whether it counts. So a mark needs no lock: each is a single
store, and a search that meets it sees the token as it was or as it is.
"""

import numpy as np

from reprise.spec.api.near_answer import IntArray
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import BOS, END, MAX_ORDER, REMOVED, SUCCESSORS

SAMPLED = 24


@compiled
def mark_removed(text: IntArray, begin: int, end: int) -> None:
    """Mark the tokens of text[begin:end], which holds no BOS or END, as removed."""
    for i in range(begin, end):
        text[i] += REMOVED


@compiled
def token_of(stored: int) -> int:
    """The token at a position of the text, be it removed or not."""
    return stored if stored >= BOS else stored - REMOVED


@compiled
def precedes(text: IntArray, a: int, b: int) -> bool:
    """Whether the suffix at `a` sorts before the one at `b`."""
    for depth in range(MAX_ORDER + 1):
        x, y = token_of(text[a + depth]), token_of(text[b + depth])
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
def merge_suffixes(text: IntArray, order: IntArray, added: IntArray, merged: IntArray) -> None:
    """Merge sorted `order` [n] and `added` [m] into `merged` [n + m]."""
    begin = number = 0
    for k in range(added.shape[0]):
        low, high = begin, order.shape[0]
        while low < high:
            middle = (low + high) // 2
            if precedes(text, order[middle], added[k]):
                low = middle + 1
            else:
                high = middle
        merged[number : number + low - begin] = order[begin:low]
        number += low - begin
        merged[number] = added[k]
        begin, number = low, number + 1
    merged[number:] = order[begin:]


@compiled
def narrow(text, order, depth, low, high, token):
    """The range within order[low:high], which share `depth` tokens, that goes on with `token`."""
    a, b = low, high
    while a < b:
        middle = (a + b) // 2
        if token_of(text[order[middle] + depth]) < token:
            a = middle + 1
        else:
            b = middle
    first, b = a, high
    step = 1
    while a + step < b and token_of(text[order[a + step] + depth]) <= token:
        a += step
        step *= 2
    b = min(b, a + step)
    while a < b:
        middle = (a + b) // 2
        if token_of(text[order[middle] + depth]) <= token:
            a = middle + 1
        else:
            b = middle
    return first, a


@compiled
def successors(text, order, depth, low, high, tokens, counts):
    """The most frequent tokens after order[low:high], whose entries share `depth` tokens.

    Fills `tokens` and `counts`, both [SUCCESSORS] int32; returns how many, and how many entries are
    not of removed answers. Up to SAMPLED entries are all counted. A longer range is sampled at even
    distances: as it is sorted by what follows, no token with a share of 1 / SAMPLED can be missed,
    and its count is right to within that.
    """
    size = high - low
    looks = min(size, SAMPLED)
    number, run, previous, removed = 0, 0, END, 0
    for i in range(looks + 1):
        token = END
        if i < looks:
            index = low + i if size <= SAMPLED else low + (2 * i + 1) * size // (2 * SAMPLED)
            token = text[order[index] + depth]
            if token < BOS or (token == END and text[order[index] + depth - 1] < BOS):
                removed += 1
                continue
            if token == previous:
                run += 1
                continue
        if previous != END:
            count = run if size <= SAMPLED else max(1, run * size // SAMPLED)
            rank = number if number < SUCCESSORS else SUCCESSORS - 1
            if number < SUCCESSORS or count > counts[rank]:
                while rank > 0 and counts[rank - 1] < count:
                    tokens[rank], counts[rank] = tokens[rank - 1], counts[rank - 1]
                    rank -= 1
                tokens[rank], counts[rank] = previous, count
                number = min(number + 1, SUCCESSORS)
        previous, run = token, 1
    if size > SAMPLED:
        removed = removed * size // SAMPLED
    return number, size - removed
