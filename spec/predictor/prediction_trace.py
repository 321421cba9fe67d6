# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""The trace: what each position of a request's last draft was predicted from.

Learning so needs no second prediction, and a draft that was half right is not predicted again.
"""

from typing import Annotated, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import (
    CANDIDATE_FEATURES,
    EVIDENCE_FEATURES,
    MAX_CANDIDATES,
    MAX_EVIDENCE,
    MAX_NEAR,
    MAX_ORDER,
    NUM_SKIPPED,
)
from reprise.spec.runtime.tables import address_table, float32, int16, int32, make_arrays, opener


class PredictionTrace(NamedTuple):
    """What the positions of each request's last draft were predicted from.

    Shapes are those behind [request index, position].
    """

    tokens: Annotated[Any, int32()]  # the drafted token
    probs: Annotated[
        Any, float32()
    ]  # that the draft is right up to and with this token; of the one
    # after the last as well, though it is not drafted
    sources: Annotated[Any, int32()]
    nears: Annotated[Any, int32()]  # index of the near answer, -1 if none
    evidence_count: Annotated[Any, int32()]
    evidence_near_count: Annotated[Any, int32()]  # the first ones are from near answers
    evidence_token: Annotated[Any, int32(MAX_EVIDENCE)]
    evidence_position: Annotated[Any, int32(MAX_EVIDENCE)]  # index in near text, -1 if none
    evidence_match: Annotated[Any, int32(MAX_EVIDENCE)]
    evidence_weight: Annotated[Any, float32(MAX_EVIDENCE)]  # share of the mixture
    evidence_feature: Annotated[Any, int16(MAX_EVIDENCE, EVIDENCE_FEATURES)]
    escape_weight: Annotated[Any, float32()]
    escape_feature: Annotated[Any, int16(8)]  # three for the mixture, then four for the choice
    escape_fraction: Annotated[Any, float32()]
    candidate_count: Annotated[Any, int32()]
    candidate_token: Annotated[Any, int32(MAX_CANDIDATES)]
    candidate_prob: Annotated[Any, float32(MAX_CANDIDATES + 1)]  # the last one for "none of them"
    candidate_feature: Annotated[Any, int16(MAX_CANDIDATES, CANDIDATE_FEATURES)]
    candidate_feature_count: Annotated[Any, int32(MAX_CANDIDATES)]
    candidate_fraction: Annotated[Any, float32(MAX_CANDIDATES)]
    ranges: Annotated[Any, int32(MAX_ORDER + 1, 2)]  # of the suffix array, per order
    skipped: Annotated[Any, int32(NUM_SKIPPED, 2)]  # the same for tokens before the last alone
    pointers: Annotated[Any, int32(MAX_NEAR)]  # the alignment: index in near text expected next
    hits: Annotated[Any, float32(MAX_NEAR)]


def make_trace(num_requests: int, num_positions: int) -> PredictionTrace:
    """Make a trace for requests whose drafts have fewer than `num_positions` tokens."""
    return make_arrays(PredictionTrace, num_requests, num_positions)


def trace_table(trace: PredictionTrace) -> npt.NDArray[np.int64]:
    """Write down where a trace lies that is kept alive, for `open_trace`."""
    return address_table(trace, num_leading=2)


open_trace = opener(PredictionTrace, num_leading=2)
"""The trace behind a table of `trace_table`."""


class Evidence(NamedTuple):
    """The evidence of one position."""

    token: Any  # [MAX_EVIDENCE] int32
    position: Any  # [MAX_EVIDENCE] int32
    match: Any  # [MAX_EVIDENCE] int32
    weight: Any  # [MAX_EVIDENCE] float32
    feature: Any  # [MAX_EVIDENCE, EVIDENCE_FEATURES] int16


class Candidates(NamedTuple):
    """The candidates of one position."""

    token: Any  # [MAX_CANDIDATES] int32
    prob: Any  # [MAX_CANDIDATES + 1] float32
    feature: Any  # [MAX_CANDIDATES, CANDIDATE_FEATURES] int16
    feature_count: Any  # [MAX_CANDIDATES] int32
    fraction: Any  # [MAX_CANDIDATES] float32


@compiled
def evidence_at(trace, req_idx, position):
    """The evidence of a position of the trace."""
    return Evidence(
        trace.evidence_token[req_idx, position],
        trace.evidence_position[req_idx, position],
        trace.evidence_match[req_idx, position],
        trace.evidence_weight[req_idx, position],
        trace.evidence_feature[req_idx, position],
    )


@compiled
def candidates_at(trace, req_idx, position):
    """The candidates of a position of the trace."""
    return Candidates(
        trace.candidate_token[req_idx, position],
        trace.candidate_prob[req_idx, position],
        trace.candidate_feature[req_idx, position],
        trace.candidate_feature_count[req_idx, position],
        trace.candidate_fraction[req_idx, position],
    )


@compiled
def put_evidence(evidence, count, token, match, first, second):
    """Write a piece of evidence of no near answer, with at most two features, 0 for none."""
    evidence.token[count], evidence.position[count] = token, -1
    evidence.match[count] = match
    features = evidence.feature[count]
    features[0], features[1] = first, second
    for f in range(2, EVIDENCE_FEATURES):
        features[f] = 0
