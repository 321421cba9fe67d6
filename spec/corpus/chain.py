# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Chains of a corpus's recent answers: for each token, the position before it in the same bucket.

Following a chain from a token's bucket visits that token's earlier positions, newest first, among
others of the same bucket, which the visitor skips. They cost 8 bytes a token, whatever the tokens.
"""

import numpy as np

from reprise.spec.api.near_answer import IntArray
from reprise.spec.runtime.compiled import compiled


@compiled
def bucket_of(token: int, mask: int) -> int:
    """The bucket of a token in a table of mask + 1 heads."""
    return ((token + 3) * 0x9E3779B1 >> 7) & mask


@compiled
def link_recent(
    text: IntArray,
    chain: IntArray,
    heads: IntArray,
    mask: int,
    begin: int,
    since: int,
    end: int,
) -> None:
    """Chain text[since:end]; the recent part begins at `begin`, the chain is indexed from there."""
    for i in range(since, end):
        bucket = bucket_of(text[i], mask)
        chain[i - begin] = heads[bucket]
        heads[bucket] = i


def empty_heads(length: int, *, max_heads: int = 1 << 14) -> IntArray:
    """Heads for a text of about `length` tokens: a power of two of them, all empty."""
    size = 64
    while size < length and size < max_heads:
        size *= 2
    return np.full(size, -1, np.int32)
