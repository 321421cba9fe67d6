# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Prediction at one position of the trail: components, attention, choice; then the next state."""

from typing import Any, NamedTuple

from reprise.spec.predictor.alignment import advance_alignment, follow
from reprise.spec.predictor.attention import attend, gather_candidates
from reprise.spec.predictor.candidate_features import (
    clear_counts,
    count_aligned,
    count_matches,
    count_successors,
)
from reprise.spec.predictor.choice import choose, likeliest_of, select_candidates
from reprise.spec.predictor.context_components import add_context_components, add_context_skipped
from reprise.spec.predictor.corpus_components import (
    add_corpus_components,
    add_corpus_skipped,
    advance_ranges,
    note_skipped,
)
from reprise.spec.predictor.near_components import (
    add_near_components,
    add_near_skipped,
    add_takeovers,
)
from reprise.spec.predictor.row_arrays import open_context, open_near
from reprise.spec.predictor.trail import candidates_at, components_at
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import (
    CLAUSES,
    CONTEXT,
    CORPUS,
    CORPUS_ROW,
    LENGTH,
    NEAR_ANSWER,
    NEAR_COUNT,
    NEAR_LENGTH,
    SALT,
    USED_SKIPPED,
    USED_SUCCESSORS,
)


class Found(NamedTuple):
    """How many components there are of each source, one after the other, and how far they reach."""

    near_end: Any
    context_end: Any
    corpus_end: Any  # from here on, to `count`, of the tokens before the last alone
    count: Any
    longest_near: Any  # matches
    longest_context: Any
    orders: Any


@compiled
def longest_match(components, begin, end):
    """The longest match of the components begin..end."""
    longest = 0
    for i in range(begin, end):
        longest = max(longest, components.match[i])
    return longest


@compiled
def collect(slot, position, requests, corpora, trail, scratch):
    """Fill the trail's components."""
    row = requests[slot]
    context = open_context(row)
    n = row[LENGTH] + position
    components = components_at(trail, slot, position)
    count = 0
    if row[NEAR_COUNT] > 0:
        near_texts = open_near(row)
        pointers, hits = trail.pointers[slot, position], trail.hits[slot, position]
        count = add_near_components(context, n, near_texts, pointers, hits, components, count)
        count = add_near_skipped(context, n, near_texts, pointers, hits, components, count)
        if row[CLAUSES] > 1:
            count = add_takeovers(near_texts, pointers, hits, components, count)
    near_end = count
    count = add_context_components(context, n, components, count)
    count = add_context_skipped(context, n, components, count)
    context_end = count
    corpus = corpora[row[CORPUS_ROW]]
    text, begin = context.text, context.begin
    ranges, skipped = trail.ranges[slot, position], trail.skipped[slot, position]
    count, orders = add_corpus_components(
        corpus, text, begin, n, ranges, scratch, components, count
    )
    corpus_end = count
    count = add_corpus_skipped(corpus, text, begin, n, skipped, scratch, components, count)
    trail.component_count[slot, position] = count
    trail.component_near_count[slot, position] = near_end
    return Found(
        near_end,
        context_end,
        corpus_end,
        count,
        longest_match(components, 0, near_end),
        longest_match(components, near_end, context_end),
        orders,
    )


@compiled
def count_all(found, selected, row, pointers, hits, components, scratch):
    """Count for the chosen candidates what their features need."""
    near_end, context_end, matches = found.near_end, found.context_end, components.match
    clear_counts(selected, scratch)
    count_matches(matches, 0, near_end, selected, scratch, scratch.near_count, scratch.near_total)
    context_count, context_total = scratch.context_count, scratch.context_total
    count_matches(matches, near_end, context_end, selected, scratch, context_count, context_total)
    if near_end > 0:
        count_aligned(components, near_end, open_near(row).tags, pointers, hits, scratch)
    numbers, counts = scratch.successors, scratch.successor_count
    own, end = scratch.corpus_count, found.corpus_end
    count_successors(context_end, end, USED_SUCCESSORS, numbers, counts, own, scratch)
    numbers, counts, own = scratch.beyond, scratch.beyond_count, scratch.skipped_count
    count_successors(end, found.count, USED_SKIPPED, numbers, counts, own, scratch)
    for i in range(found.count):
        scratch.source[i] = (
            NEAR_ANSWER if i < near_end else (CONTEXT if i < context_end else CORPUS)
        )


@compiled
def predict(slot, position, requests, corpora, trail, scratch, weights):
    """Predict the token at a position of the trail whose ranges and alignment are there already.

    Returns (place of the likeliest candidate, its best component); (-1, -1) if there is none.
    """
    row = requests[slot]
    found = collect(slot, position, requests, corpora, trail, scratch)
    components = components_at(trail, slot, position)
    candidates = candidates_at(trail, slot, position)
    escape_feature = trail.escape_feature[slot, position]
    number = gather_candidates(components.token, found.count, scratch)
    escape = attend(
        components.feature,
        found.count,
        found.longest_near,
        found.longest_context,
        found.orders,
        weights.attention,
        escape_feature,
        components.weight,
        scratch,
    )
    trail.escape_weight[slot, position] = escape
    selected = select_candidates(number, scratch)
    pointers, hits = trail.pointers[slot, position], trail.hits[slot, position]
    count_all(found, selected, row, pointers, hits, components, scratch)
    trail.escape_fraction[slot, position] = choose(
        selected,
        open_context(row),
        open_near(row),
        row[LENGTH] + position,
        row[SALT],
        found.longest_near,
        found.longest_context,
        found.orders,
        components,
        escape,
        weights.choice,
        escape_feature,
        candidates,
        scratch,
    )
    trail.candidate_count[slot, position] = selected
    likeliest = likeliest_of(selected, candidates)
    if likeliest < 0:
        return -1, -1
    return likeliest, scratch.best[scratch.chosen[likeliest]]


@compiled
def advance(slot, position, token, known, fresh, requests, corpora, trail, scratch, target):
    """Write into the trail's `target` position the ranges and alignment after `token`.

    known: whether `position` holds components; without them, near answers move on by one.
    fresh: whether the ranges are those of the suffix array as it is now.
    """
    row = requests[slot]
    if fresh:
        corpus = corpora[row[CORPUS_ROW]]
        note_skipped(trail.ranges[slot, position], trail.skipped[slot, target])
        advance_ranges(corpus, trail.ranges[slot, position], trail.ranges[slot, target], token)
    if row[NEAR_COUNT] == 0:
        return
    pointers, hits = trail.pointers[slot, position], trail.hits[slot, position]
    next_pointers, next_hits = trail.pointers[slot, target], trail.hits[slot, target]
    if known:
        advance_alignment(
            trail.component_token[slot, position],
            trail.component_place[slot, position],
            trail.component_match[slot, position],
            open_near(row).tags,
            trail.component_near_count[slot, position],
            token,
            row[NEAR_COUNT],
            pointers,
            hits,
            next_pointers,
            next_hits,
            scratch,
        )
    else:
        near_text, count = open_near(row).text, row[NEAR_COUNT]
        follow(near_text, row[NEAR_LENGTH], token, count, pointers, hits, next_pointers, next_hits)
