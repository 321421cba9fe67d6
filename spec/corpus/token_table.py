# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Token tables: for each token of a text, where it is and how often.

A table is an open hash table; beside it, a chain leads from each position of a token to the next
one to visit. So what is asked of a token takes one look, and a visit meets its positions alone.
Tables grow with the number of different tokens, not with the vocabulary.
"""

import numpy as np

from reprise.spec.api.near_answer import IntArray
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import NEXT_POSITION, TAG, TOKEN

# An entry. The key is 0 where none is, the token + 3 otherwise.
KEY, FIRST_POSITION, COUNT, OUTPUT_COUNT, ENTRY_FIELDS = range(5)
MIN_ENTRIES = 64


@compiled
def entry_of(table, mask, token):
    """The index of the token's entry, or of the free one that would be its.

    Each token has its own distance from entry to entry, so that no choice of tokens crowds them.
    """
    key = token + 3
    mixed = key * 0x9E3779B1
    entry = (mixed >> 7) & mask
    while table[entry, KEY] != 0 and table[entry, KEY] != key:
        entry = (entry + (mixed >> 23 | 1)) & mask
    return entry


@compiled
def first_position(table, mask, token):
    """The position of a token that is to be visited first; -1 if the text has none."""
    return table[entry_of(table, mask, token), FIRST_POSITION] - 1


@compiled
def with_room(table: IntArray, room: int) -> IntArray:
    """A table of the same entries in which, after `room` more, half are free still."""
    used = 0
    for entry in range(table.shape[0]):
        used += table[entry, KEY] != 0
    size = table.shape[0]
    if 2 * (used + room) <= size:
        return table
    while size < 2 * (used + room):
        size *= 2
    grown = np.zeros((size, ENTRY_FIELDS), np.int32)
    for entry in range(table.shape[0]):
        if table[entry, KEY] != 0:
            grown[entry_of(grown, size - 1, table[entry, KEY] - 3)] = table[entry]
    return grown


@compiled
def put_first(table, mask, chain, token, position):
    """Make `position` the token's first one, before those that are there; return its entry."""
    entry = entry_of(table, mask, token)
    chain[position] = table[entry, FIRST_POSITION] - 1
    table[entry, KEY] = token + 3
    table[entry, FIRST_POSITION] = position + 1
    return entry


@compiled
def link(text, chain, table, mask, begin, end, output):
    """Add text[begin:end], so that a visit meets the latest positions first. Counts are those of
    the prompt, text[:output], and of the output. There has to be room."""
    for i in range(begin, end):
        entry = put_first(table, mask, chain, text[i], i)
        table[entry, COUNT if i < output else OUTPUT_COUNT] += 1


@compiled
def context_table(positions: IntArray, length: int, output: int, room: int) -> IntArray:
    """Make a table of positions[:length], [n, POSITION_FIELDS], with room for `room` more."""
    text, chain = positions[:, TOKEN], positions[:, NEXT_POSITION]
    table = np.zeros((MIN_ENTRIES, ENTRY_FIELDS), np.int32)
    used = 0
    for i in range(length):
        if 2 * used >= table.shape[0]:
            table = with_room(table, 1)
        link(text, chain, table, table.shape[0] - 1, i, i + 1, output)
        used += chain[i] < 0
    return with_room(table, room)


@compiled
def near_table(positions: IntArray) -> IntArray:
    """Make a table of near answers, positions [t, NEAR_POSITION_FIELDS], so that a visit meets the
    first positions first. Counts are of the near answers that have the token."""
    text, chain, tags = positions[:, TOKEN], positions[:, NEXT_POSITION], positions[:, TAG]
    table = np.zeros((MIN_ENTRIES, ENTRY_FIELDS), np.int32)
    used = 0
    for i in range(positions.shape[0] - 1, -1, -1):
        if 2 * used >= table.shape[0]:
            table = with_room(table, 1)
        entry = put_first(table, table.shape[0] - 1, chain, text[i], i)
        later = chain[i]
        used += later < 0
        table[entry, COUNT] += later < 0 or (tags[later] & 255) != (tags[i] & 255)
    return table
