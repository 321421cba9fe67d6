# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""The trail: what each position of a request's last draft was predicted from.

Learning so needs no second prediction, and a draft that was half right is not predicted again.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.runtime.compiled import compiled, float32_table, int16_table, int32_table
from reprise.spec.runtime.layout import (
    CANDIDATE_FEATURES,
    COMPONENT_FEATURES,
    MAX_CANDIDATES,
    MAX_COMPONENTS,
    MAX_NEAR,
    MAX_ORDER,
    NUM_SKIPPED,
)


class Trail(NamedTuple):
    """What the positions of each request's last draft were predicted from. s: slot, p: position."""

    tokens: Any  # [s, p] int32: the drafted token
    chances: Any  # [s, p] float32: that the draft is right up to and with this token; of the one
    # after the last as well, though it is not drafted
    sources: Any  # [s, p] int32
    nears: Any  # [s, p] int32: index of the near answer, -1 if none
    component_count: Any  # [s, p] int32
    component_near_count: Any  # [s, p] int32: the first ones are from near answers
    component_token: Any  # [s, p, MAX_COMPONENTS] int32
    component_place: Any  # [s, p, MAX_COMPONENTS] int32: index in near text, -1 if none
    component_match: Any  # [s, p, MAX_COMPONENTS] int32
    component_weight: Any  # [s, p, MAX_COMPONENTS] float32: share of attention
    component_feature: Any  # [s, p, MAX_COMPONENTS, COMPONENT_FEATURES] int16
    escape_weight: Any  # [s, p] float32
    escape_feature: Any  # [s, p, 8] int16: three for attention, then four for the choice
    escape_fraction: Any  # [s, p] float32
    candidate_count: Any  # [s, p] int32
    candidate_token: Any  # [s, p, MAX_CANDIDATES] int32
    candidate_chance: Any  # [s, p, MAX_CANDIDATES + 1] float32, the last one for "none of them"
    candidate_feature: Any  # [s, p, MAX_CANDIDATES, CANDIDATE_FEATURES] int16
    candidate_feature_count: Any  # [s, p, MAX_CANDIDATES] int32
    candidate_fraction: Any  # [s, p, MAX_CANDIDATES] float32
    ranges: Any  # [s, p, MAX_ORDER + 1, 2] int32: of the suffix array, per order
    skipped: Any  # [s, p, NUM_SKIPPED, 2] int32: the same for tokens before the last alone
    pointers: Any  # [s, p, MAX_NEAR] int32: the alignment: index in near text expected next
    hits: Any  # [s, p, MAX_NEAR] float32


def make_trail(slots: int, positions: int) -> Trail:
    """A trail for `slots` requests whose drafts have fewer than `positions` tokens."""

    def ints(*shape: int) -> Any:
        return np.zeros((slots, positions, *shape), np.int32)

    def shorts(*shape: int) -> Any:
        return np.zeros((slots, positions, *shape), np.int16)

    def floats(*shape: int) -> Any:
        return np.zeros((slots, positions, *shape), np.float32)

    return Trail(
        tokens=ints(),
        chances=floats(),
        sources=ints(),
        nears=ints(),
        component_count=ints(),
        component_near_count=ints(),
        component_token=ints(MAX_COMPONENTS),
        component_place=ints(MAX_COMPONENTS),
        component_match=ints(MAX_COMPONENTS),
        component_weight=floats(MAX_COMPONENTS),
        component_feature=shorts(MAX_COMPONENTS, COMPONENT_FEATURES),
        escape_weight=floats(),
        escape_feature=shorts(8),
        escape_fraction=floats(),
        candidate_count=ints(),
        candidate_token=ints(MAX_CANDIDATES),
        candidate_chance=floats(MAX_CANDIDATES + 1),
        candidate_feature=shorts(MAX_CANDIDATES, CANDIDATE_FEATURES),
        candidate_feature_count=ints(MAX_CANDIDATES),
        candidate_fraction=floats(MAX_CANDIDATES),
        ranges=ints(MAX_ORDER + 1, 2),
        skipped=ints(NUM_SKIPPED, 2),
        pointers=ints(MAX_NEAR),
        hits=floats(MAX_NEAR),
    )


def trail_table(trail: Trail) -> npt.NDArray[np.int64]:
    """Addresses and sizes, [26] int64, by which compiled code finds a trail that is kept alive."""
    return np.array([*(array.ctypes.data for array in trail), *trail.tokens.shape], np.int64)


@compiled
def open_trail(table):
    """The trail behind a table of `trail_table`: one argument instead of 24 arrays."""
    slots, positions = table[24], table[25]
    return Trail(
        int32_table(table[0], (slots, positions)),
        float32_table(table[1], (slots, positions)),
        int32_table(table[2], (slots, positions)),
        int32_table(table[3], (slots, positions)),
        int32_table(table[4], (slots, positions)),
        int32_table(table[5], (slots, positions)),
        int32_table(table[6], (slots, positions, MAX_COMPONENTS)),
        int32_table(table[7], (slots, positions, MAX_COMPONENTS)),
        int32_table(table[8], (slots, positions, MAX_COMPONENTS)),
        float32_table(table[9], (slots, positions, MAX_COMPONENTS)),
        int16_table(table[10], (slots, positions, MAX_COMPONENTS, COMPONENT_FEATURES)),
        float32_table(table[11], (slots, positions)),
        int16_table(table[12], (slots, positions, 8)),
        float32_table(table[13], (slots, positions)),
        int32_table(table[14], (slots, positions)),
        int32_table(table[15], (slots, positions, MAX_CANDIDATES)),
        float32_table(table[16], (slots, positions, MAX_CANDIDATES + 1)),
        int16_table(table[17], (slots, positions, MAX_CANDIDATES, CANDIDATE_FEATURES)),
        int32_table(table[18], (slots, positions, MAX_CANDIDATES)),
        float32_table(table[19], (slots, positions, MAX_CANDIDATES)),
        int32_table(table[20], (slots, positions, MAX_ORDER + 1, 2)),
        int32_table(table[21], (slots, positions, NUM_SKIPPED, 2)),
        int32_table(table[22], (slots, positions, MAX_NEAR)),
        float32_table(table[23], (slots, positions, MAX_NEAR)),
    )


class Components(NamedTuple):
    """The components of one position."""

    token: Any  # [MAX_COMPONENTS] int32
    place: Any  # [MAX_COMPONENTS] int32
    match: Any  # [MAX_COMPONENTS] int32
    weight: Any  # [MAX_COMPONENTS] float32
    feature: Any  # [MAX_COMPONENTS, COMPONENT_FEATURES] int16


class Candidates(NamedTuple):
    """The candidates of one position."""

    token: Any  # [MAX_CANDIDATES] int32
    chance: Any  # [MAX_CANDIDATES + 1] float32
    feature: Any  # [MAX_CANDIDATES, CANDIDATE_FEATURES] int16
    feature_count: Any  # [MAX_CANDIDATES] int32
    fraction: Any  # [MAX_CANDIDATES] float32


@compiled
def components_at(trail, slot, position):
    """The components of a position of the trail."""
    return Components(
        trail.component_token[slot, position],
        trail.component_place[slot, position],
        trail.component_match[slot, position],
        trail.component_weight[slot, position],
        trail.component_feature[slot, position],
    )


@compiled
def candidates_at(trail, slot, position):
    """The candidates of a position of the trail."""
    return Candidates(
        trail.candidate_token[slot, position],
        trail.candidate_chance[slot, position],
        trail.candidate_feature[slot, position],
        trail.candidate_feature_count[slot, position],
        trail.candidate_fraction[slot, position],
    )


@compiled
def put_component(components, count, token, match, first, second):
    """Write a component that is in no near answer and has at most two features, 0 for none."""
    components.token[count], components.place[count] = token, -1
    components.match[count] = match
    features = components.feature[count]
    features[0], features[1] = first, second
    for f in range(2, COMPONENT_FEATURES):
        features[f] = 0
