# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Chains: for each token of a text, the index of the one before it in the same bucket.

Following a chain from a token's bucket visits that token's earlier places, newest first, among
others of the same bucket, which the visitor skips. The tables grow with the text, not with the
vocabulary.
"""

import numpy as np

from .compiled import compiled
from .near_answer import IntArray


@compiled
def bucket_of(token: int, mask: int) -> int:
    """The bucket of a token in a table of mask + 1 heads."""
    return ((token + 3) * 0x9E3779B1 >> 7) & mask


@compiled
def link(text, chain, heads, mask, begin, end):
    """Add text[begin:end] to the chains."""
    for i in range(begin, end):
        bucket = bucket_of(text[i], mask)
        chain[i] = heads[bucket]
        heads[bucket] = i


@compiled
def link_reversed(text, chain, heads, mask, begin, end):
    """Add text[begin:end] so that a visit meets the first places first."""
    for i in range(end - 1, begin - 1, -1):
        bucket = bucket_of(text[i], mask)
        chain[i] = heads[bucket]
        heads[bucket] = i


def empty_heads(length: int, *, most: int = 1 << 14) -> IntArray:
    """Heads for a text of about `length` tokens: a power of two of them, all empty."""
    size = 64
    while size < length and size < most:
        size *= 2
    return np.full(size, -1, np.int32)
