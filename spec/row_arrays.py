# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""What a row of the request table stands for: the request's context and its near answers."""

from typing import Any, NamedTuple

from .compiled import compiled, int32_at
from .layout import (
    BEGIN,
    CAPACITY,
    CHAIN,
    HEAD_MASK,
    HEADS,
    LENGTH,
    NEAR_CHAIN,
    NEAR_COUNT,
    NEAR_HEAD_MASK,
    NEAR_HEADS,
    NEAR_INFO,
    NEAR_INFO_FIELDS,
    NEAR_LENGTH,
    NEAR_TAGS,
    NEAR_TEXT,
    TEXT,
)


class Context(NamedTuple):
    """The request's own tokens."""

    text: Any  # [capacity] int32: prompt, BOS, output, draft so far
    chain: Any  # [capacity] int32
    heads: Any  # [mask + 1] int32
    mask: Any
    begin: Any  # index of BOS
    length: Any  # without the draft


class NearTexts(NamedTuple):
    """The request's near answers, one after the other."""

    text: Any  # [length] int32: BOS, tokens, END of each
    chain: Any  # [length] int32
    heads: Any  # [mask + 1] int32
    mask: Any
    tags: Any  # [length] int32: near answer's index + 256 * slot class
    info: Any  # [count * NEAR_INFO_FIELDS] int32
    count: Any


@compiled
def open_context(row):
    """The context behind a row of the request table."""
    return Context(
        int32_at(row[TEXT], row[CAPACITY]),
        int32_at(row[CHAIN], row[CAPACITY]),
        int32_at(row[HEADS], row[HEAD_MASK] + 1),
        row[HEAD_MASK],
        row[BEGIN],
        row[LENGTH],
    )


@compiled
def open_near(row):
    """The near answers behind a row of the request table; without any, nothing may be read."""
    return NearTexts(
        int32_at(row[NEAR_TEXT], row[NEAR_LENGTH]),
        int32_at(row[NEAR_CHAIN], row[NEAR_LENGTH]),
        int32_at(row[NEAR_HEADS], row[NEAR_HEAD_MASK] + 1),
        row[NEAR_HEAD_MASK],
        int32_at(row[NEAR_TAGS], row[NEAR_LENGTH]),
        int32_at(row[NEAR_INFO], row[NEAR_COUNT] * NEAR_INFO_FIELDS),
        row[NEAR_COUNT],
    )
