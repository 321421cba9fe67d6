# mypy: allow-untyped-calls
"""Scratch: working space of one thread; nothing in it outlives a prediction."""

from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.runtime.layout import (
    CANDIDATE_BUCKETS,
    MAX_CANDIDATES,
    MAX_EVIDENCE,
    MAX_NEAR,
    NUM_ORDERS,
    NUM_SKIPPED,
    SUCCESSORS,
)
from reprise.spec.runtime.tables import address_table, float32, int32, make_arrays, opener


class Scratch(NamedTuple):
    """Working space of one thread."""

    bucket_stamp: Annotated[Any, int32(CANDIDATE_BUCKETS)]  # hash table from token to candidate
    bucket_candidate: Annotated[Any, int32(CANDIDATE_BUCKETS)]
    stamp: Annotated[Any, int32(1)]
    token: Annotated[Any, int32(MAX_EVIDENCE)]  # the candidates
    prob: Annotated[Any, float32(MAX_EVIDENCE)]
    best: Annotated[Any, int32(MAX_EVIDENCE)]  # the evidence that says most for the candidate
    candidate: Annotated[Any, int32(MAX_EVIDENCE)]  # of each piece of evidence
    rank: Annotated[Any, int32(MAX_EVIDENCE)]  # of each candidate among the chosen, -1 if it is not
    near_count: Annotated[Any, int32(MAX_CANDIDATES, 8)]  # of the chosen, by min match
    context_count: Annotated[Any, int32(MAX_CANDIDATES, 8)]
    corpus_count: Annotated[Any, int32(MAX_CANDIDATES, NUM_ORDERS)]
    aligned_count: Annotated[Any, int32(MAX_CANDIDATES, 2)]  # near answers whose pointer is at it
    aligned_total: Annotated[Any, int32(2)]
    near_total: Annotated[Any, int32(8)]
    context_total: Annotated[Any, int32(8)]
    corpus_total: Annotated[Any, int32(NUM_ORDERS)]
    successor_token: Annotated[Any, int32(NUM_ORDERS, SUCCESSORS)]
    successor_count: Annotated[Any, int32(NUM_ORDERS, SUCCESSORS)]
    successors: Annotated[Any, int32(NUM_ORDERS)]
    skipped_count: Annotated[Any, int32(MAX_CANDIDATES, NUM_SKIPPED)]
    skipped_total: Annotated[Any, int32(NUM_SKIPPED)]
    beyond_token: Annotated[Any, int32(NUM_SKIPPED, SUCCESSORS)]  # successors beyond the last token
    beyond_count: Annotated[Any, int32(NUM_SKIPPED, SUCCESSORS)]
    beyond: Annotated[Any, int32(NUM_SKIPPED)]
    chosen: Annotated[Any, int32(MAX_CANDIDATES)]  # candidates by falling probability
    source: Annotated[Any, int32(MAX_EVIDENCE)]  # of each piece of evidence
    best_match: Annotated[Any, float32(MAX_NEAR)]
    best_position: Annotated[Any, int32(MAX_NEAR)]


def make_scratch() -> Scratch:
    """Make fresh working space."""
    return make_arrays(Scratch)


def scratch_table(scratch: Scratch) -> npt.NDArray[np.int64]:
    """Write down where a scratch lies that is kept alive, for `open_scratch`."""
    return address_table(scratch)


open_scratch = opener(Scratch)
"""The scratch behind a table of `scratch_table`."""
