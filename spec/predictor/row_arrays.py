# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""What a row of the request table stands for: the request's context and its near answers."""

from typing import Any, NamedTuple

from reprise.spec.corpus.token_table import ENTRY_FIELDS
from reprise.spec.runtime.compiled import compiled, int32_at, int32_table
from reprise.spec.runtime.layout import (
    BEGIN,
    CAPACITY,
    LENGTH,
    NEAR_COUNT,
    NEAR_INFO,
    NEAR_INFO_FIELDS,
    NEAR_LENGTH,
    NEAR_POSITION_FIELDS,
    NEAR_POSITIONS,
    NEAR_TOKENS,
    NEAR_TOKENS_MASK,
    NEXT_POSITION,
    POSITION_FIELDS,
    POSITIONS,
    TAG,
    TOKEN,
    TOKENS,
    TOKENS_MASK,
)


class Context(NamedTuple):
    """The request's own tokens."""

    text: Any  # [capacity] int32: prompt, BOS, output, draft so far
    chain: Any  # [capacity] int32
    table: Any  # [mask + 1, ENTRY_FIELDS] int32: see token_table.py
    mask: Any
    begin: Any  # index of BOS
    length: Any  # without the draft


class NearTexts(NamedTuple):
    """The request's near answers, one after the other."""

    text: Any  # [length] int32: BOS, tokens, END of each
    chain: Any  # [length] int32
    tags: Any  # [length] int32: near answer's index + 256 * prompt class, see layout.py
    table: Any  # [mask + 1, ENTRY_FIELDS] int32
    mask: Any
    info: Any  # [count * NEAR_INFO_FIELDS] int32
    count: Any


@compiled
def open_context(row):
    """The context behind a row of the request table."""
    positions = int32_table(row[POSITIONS], (row[CAPACITY], POSITION_FIELDS))
    return Context(
        positions[:, TOKEN],
        positions[:, NEXT_POSITION],
        int32_table(row[TOKENS], (row[TOKENS_MASK] + 1, ENTRY_FIELDS)),
        row[TOKENS_MASK],
        row[BEGIN],
        row[LENGTH],
    )


@compiled
def open_near(row):
    """The near answers behind a row of the request table; without any, nothing may be read."""
    positions = int32_table(row[NEAR_POSITIONS], (row[NEAR_LENGTH], NEAR_POSITION_FIELDS))
    return NearTexts(
        positions[:, TOKEN],
        positions[:, NEXT_POSITION],
        positions[:, TAG],
        int32_table(row[NEAR_TOKENS], (row[NEAR_TOKENS_MASK] + 1, ENTRY_FIELDS)),
        row[NEAR_TOKENS_MASK],
        int32_at(row[NEAR_INFO], row[NEAR_COUNT] * NEAR_INFO_FIELDS),
        row[NEAR_COUNT],
    )
