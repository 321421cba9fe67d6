# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Scratch: working space of one thread; nothing in it outlives a prediction."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.runtime.compiled import compiled, float32_table, int32_table
from reprise.spec.runtime.layout import (
    CANDIDATE_SLOTS,
    MAX_CANDIDATES,
    MAX_COMPONENTS,
    MAX_NEAR,
    NUM_ORDERS,
    NUM_SKIPPED,
    SUCCESSORS,
)


class Scratch(NamedTuple):
    """Working space of one thread; nothing in it outlives a prediction."""

    slot_stamp: Any  # [CANDIDATE_SLOTS] int32: hash table from token to candidate
    slot_candidate: Any  # [CANDIDATE_SLOTS] int32
    stamp: Any  # [1] int32
    token: Any  # [MAX_COMPONENTS] int32: the candidates
    chance: Any  # [MAX_COMPONENTS] float32
    best: Any  # [MAX_COMPONENTS] int32: the component that says most for the candidate
    candidate: Any  # [MAX_COMPONENTS] int32: of each component
    place: Any  # [MAX_COMPONENTS] int32: of each candidate among the chosen, -1 if it is not
    near_count: Any  # [MAX_CANDIDATES, 8] int32: of the chosen, by least match
    context_count: Any  # [MAX_CANDIDATES, 8] int32
    corpus_count: Any  # [MAX_CANDIDATES, NUM_ORDERS] int32
    aligned_count: Any  # [MAX_CANDIDATES, 2] int32: near answers whose pointer is at it
    aligned_total: Any  # [2] int32
    near_total: Any  # [8] int32
    context_total: Any  # [8] int32
    corpus_total: Any  # [NUM_ORDERS] int32
    successor_token: Any  # [NUM_ORDERS, SUCCESSORS] int32
    successor_count: Any  # [NUM_ORDERS, SUCCESSORS] int32
    successors: Any  # [NUM_ORDERS] int32
    skipped_count: Any  # [MAX_CANDIDATES, NUM_SKIPPED] int32
    skipped_total: Any  # [NUM_SKIPPED] int32
    beyond_token: Any  # [NUM_SKIPPED, SUCCESSORS] int32: successors beyond the last token
    beyond_count: Any  # [NUM_SKIPPED, SUCCESSORS] int32
    beyond: Any  # [NUM_SKIPPED] int32
    chosen: Any  # [MAX_CANDIDATES] int32: candidates by falling chance
    source: Any  # [MAX_COMPONENTS] int32: of each component
    best_match: Any  # [MAX_NEAR] float32
    best_place: Any  # [MAX_NEAR] int32


def make_scratch() -> Scratch:
    """Fresh working space."""

    def ints(*shape: int) -> Any:
        return np.zeros(shape, np.int32)

    return Scratch(
        slot_stamp=ints(CANDIDATE_SLOTS),
        slot_candidate=ints(CANDIDATE_SLOTS),
        stamp=ints(1),
        token=ints(MAX_COMPONENTS),
        chance=np.zeros(MAX_COMPONENTS, np.float32),
        best=ints(MAX_COMPONENTS),
        candidate=ints(MAX_COMPONENTS),
        place=ints(MAX_COMPONENTS),
        near_count=ints(MAX_CANDIDATES, 8),
        context_count=ints(MAX_CANDIDATES, 8),
        corpus_count=ints(MAX_CANDIDATES, NUM_ORDERS),
        aligned_count=ints(MAX_CANDIDATES, 2),
        aligned_total=ints(2),
        near_total=ints(8),
        context_total=ints(8),
        corpus_total=ints(NUM_ORDERS),
        successor_token=ints(NUM_ORDERS, SUCCESSORS),
        successor_count=ints(NUM_ORDERS, SUCCESSORS),
        successors=ints(NUM_ORDERS),
        skipped_count=ints(MAX_CANDIDATES, NUM_SKIPPED),
        skipped_total=ints(NUM_SKIPPED),
        beyond_token=ints(NUM_SKIPPED, SUCCESSORS),
        beyond_count=ints(NUM_SKIPPED, SUCCESSORS),
        beyond=ints(NUM_SKIPPED),
        chosen=ints(MAX_CANDIDATES),
        source=ints(MAX_COMPONENTS),
        best_match=np.zeros(MAX_NEAR, np.float32),
        best_place=ints(MAX_NEAR),
    )


def scratch_table(scratch: Scratch) -> npt.NDArray[np.int64]:
    """Addresses [28] int64 by which compiled code finds a scratch that is kept alive."""
    return np.array([array.ctypes.data for array in scratch], np.int64)


@compiled
def open_scratch(table):
    """The scratch behind a table of `scratch_table`."""
    return Scratch(
        int32_table(table[0], (CANDIDATE_SLOTS,)),
        int32_table(table[1], (CANDIDATE_SLOTS,)),
        int32_table(table[2], (1,)),
        int32_table(table[3], (MAX_COMPONENTS,)),
        float32_table(table[4], (MAX_COMPONENTS,)),
        int32_table(table[5], (MAX_COMPONENTS,)),
        int32_table(table[6], (MAX_COMPONENTS,)),
        int32_table(table[7], (MAX_COMPONENTS,)),
        int32_table(table[8], (MAX_CANDIDATES, 8)),
        int32_table(table[9], (MAX_CANDIDATES, 8)),
        int32_table(table[10], (MAX_CANDIDATES, NUM_ORDERS)),
        int32_table(table[11], (MAX_CANDIDATES, 2)),
        int32_table(table[12], (2,)),
        int32_table(table[13], (8,)),
        int32_table(table[14], (8,)),
        int32_table(table[15], (NUM_ORDERS,)),
        int32_table(table[16], (NUM_ORDERS, SUCCESSORS)),
        int32_table(table[17], (NUM_ORDERS, SUCCESSORS)),
        int32_table(table[18], (NUM_ORDERS,)),
        int32_table(table[19], (MAX_CANDIDATES, NUM_SKIPPED)),
        int32_table(table[20], (NUM_SKIPPED,)),
        int32_table(table[21], (NUM_SKIPPED, SUCCESSORS)),
        int32_table(table[22], (NUM_SKIPPED, SUCCESSORS)),
        int32_table(table[23], (NUM_SKIPPED,)),
        int32_table(table[24], (MAX_CANDIDATES,)),
        int32_table(table[25], (MAX_COMPONENTS,)),
        float32_table(table[26], (MAX_NEAR,)),
        int32_table(table[27], (MAX_NEAR,)),
    )
