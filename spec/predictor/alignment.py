# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Alignment: per near answer, the position expected next, and how often it was right of late."""

from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import MAX_NEAR

DECAY = 0.9
FIRST_HIT = 0.5
FAR = 60


@compiled
def move_on(near_count, pointers, hits, next_pointers, next_hits):
    """Every pointer by one, and hits fade; what is next may be what is now."""
    for near in range(near_count):
        next_hits[near] = DECAY * hits[near]
        next_pointers[near] = pointers[near] + 1 if pointers[near] >= 0 else -1
    for near in range(near_count, MAX_NEAR):
        next_hits[near] = 0.0


@compiled
def advance_alignment(
    tokens,
    positions,
    matches,
    tags,
    count,
    token,
    near_count,
    pointers,
    hits,
    next_pointers,
    next_hits,
    scratch,
):
    """Alignment after `token`, from the near evidence, the first `count`, that were there before.

    A near answer goes to its best match of at least 3 (2 near its pointer) that predicted the
    token, a long match and a short way counting for it; else it moves on by one.
    """
    best_match, best_position = scratch.best_match, scratch.best_position
    for near in range(near_count):
        best_position[near] = -1
        best_match[near] = 0.0
    for i in range(count):
        if tokens[i] != token or matches[i] == 0:
            continue
        near = tags[positions[i]] & 255
        position, match = positions[i] + 1, matches[i] + 1
        distance = position - pointers[near] - 1
        distance = min(FAR, distance if distance >= 0 else -distance)
        score = match - 0.05 * distance
        if (match >= 3 or (match >= 2 and distance <= 8)) and score > best_match[near]:
            best_match[near] = score
            best_position[near] = position
    move_on(near_count, pointers, hits, next_pointers, next_hits)
    for near in range(near_count):
        if best_position[near] >= 0:
            next_hits[near] += 1.0
            next_pointers[near] = best_position[near]


@compiled
def follow(near_text, near_length, token, near_count, pointers, hits, next_pointers, next_hits):
    """Alignment after `token` without evidence: all move on by one, a hit for who expected it."""
    move_on(near_count, pointers, hits, next_pointers, next_hits)
    for near in range(near_count):
        expected = next_pointers[near] - 1
        if 0 <= expected < near_length and near_text[expected] == token:
            next_hits[near] += 1.0
