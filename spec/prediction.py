# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Prediction at one position of the trail: components, attention, choice; then the next state."""

from .alignment import advance_alignment, follow
from .attention import attend, gather_candidates
from .choice import (
    choose,
    clear_counts,
    count_aligned,
    count_matches,
    count_orders,
    presence,
    select_candidates,
)
from .compiled import compiled, int32_at
from .context_components import add_context_components, add_context_skipped
from .corpus_components import add_corpus_components, advance_ranges
from .layout import (
    BEGIN,
    CAPACITY,
    CHAIN,
    CLAUSES,
    CONTEXT,
    CORPUS,
    CORPUS_ROW,
    HEAD_MASK,
    HEADS,
    LENGTH,
    NEAR_ANSWER,
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
from .near_components import add_near_components, add_skipped_components, add_takeovers


@compiled
def collect(slot, position, requests, corpora, trail, scratch):
    """Fill the trail's components; returns (near, context ends, longest matches, orders found)."""
    row = requests[slot]
    text = int32_at(row[TEXT], row[CAPACITY])
    chain = int32_at(row[CHAIN], row[CAPACITY])
    heads = int32_at(row[HEADS], row[HEAD_MASK] + 1)
    n, begin = row[LENGTH] + position, row[BEGIN]
    tokens = trail.component_token[slot, position]
    places = trail.component_place[slot, position]
    matches = trail.component_match[slot, position]
    features = trail.component_feature[slot, position]
    count = 0
    if row[NEAR_COUNT] > 0:
        near_text = int32_at(row[NEAR_TEXT], row[NEAR_LENGTH])
        near_chain = int32_at(row[NEAR_CHAIN], row[NEAR_LENGTH])
        near_heads = int32_at(row[NEAR_HEADS], row[NEAR_HEAD_MASK] + 1)
        tags = int32_at(row[NEAR_TAGS], row[NEAR_LENGTH])
        info = int32_at(row[NEAR_INFO], row[NEAR_COUNT] * NEAR_INFO_FIELDS)
        pointers, hits = trail.pointers[slot, position], trail.hits[slot, position]
        mask = row[NEAR_HEAD_MASK]
        count = add_near_components(
            text,
            begin,
            n,
            near_text,
            near_chain,
            near_heads,
            mask,
            tags,
            info,
            pointers,
            hits,
            tokens,
            places,
            matches,
            features,
        )
        count = add_skipped_components(
            text,
            begin,
            n,
            near_text,
            near_chain,
            near_heads,
            mask,
            tags,
            info,
            pointers,
            hits,
            tokens,
            places,
            matches,
            features,
            count,
        )
        if row[CLAUSES] > 1:
            count = add_takeovers(
                near_text,
                row[NEAR_LENGTH],
                tags,
                info,
                row[NEAR_COUNT],
                pointers,
                hits,
                tokens,
                places,
                matches,
                features,
                count,
            )
    near_end = count
    mask, length = row[HEAD_MASK], row[LENGTH]
    count = add_context_components(
        text,
        begin,
        length,
        n,
        chain,
        heads,
        mask,
        tokens,
        places,
        matches,
        features,
        count,
    )
    if n >= 2:
        count = add_context_skipped(
            text,
            length,
            n,
            chain,
            heads,
            mask,
            tokens,
            places,
            matches,
            features,
            count,
        )
    context_end = count
    count, orders = add_corpus_components(
        corpora[row[CORPUS_ROW]],
        text,
        begin,
        n,
        trail.ranges[slot, position],
        scratch,
        tokens,
        places,
        matches,
        features,
        count,
    )
    longest_near, longest_context = 0, 0
    for i in range(near_end):
        longest_near = max(longest_near, matches[i])
    for i in range(near_end, context_end):
        longest_context = max(longest_context, matches[i])
    trail.component_count[slot, position] = count
    trail.component_near_count[slot, position] = near_end
    return near_end, context_end, longest_near, longest_context, orders


@compiled
def predict(slot, position, requests, corpora, trail, scratch, weights):
    """Predict the token at a position of the trail whose ranges and alignment are there already.

    Returns (place of the likeliest candidate, its best component); (-1, -1) if there is none.
    """
    near_end, context_end, near, context, orders = collect(
        slot, position, requests, corpora, trail, scratch
    )
    row = requests[slot]
    text = int32_at(row[TEXT], row[CAPACITY])
    chain = int32_at(row[CHAIN], row[CAPACITY])
    heads = int32_at(row[HEADS], row[HEAD_MASK] + 1)
    count = trail.component_count[slot, position]
    features = trail.component_feature[slot, position]
    matches = trail.component_match[slot, position]
    escape_feature = trail.escape_feature[slot, position]
    number = gather_candidates(trail.component_token[slot, position], count, scratch)
    escape = attend(
        features,
        count,
        near,
        context,
        orders,
        weights.attention,
        escape_feature,
        trail.component_weight[slot, position],
        scratch,
    )
    trail.escape_weight[slot, position] = escape
    selected = select_candidates(number, scratch)
    clear_counts(selected, scratch)
    count_matches(matches, 0, near_end, scratch, scratch.near_count, scratch.near_total)
    count_matches(
        matches,
        near_end,
        context_end,
        scratch,
        scratch.context_count,
        scratch.context_total,
    )
    if near_end > 0:
        tags = int32_at(row[NEAR_TAGS], row[NEAR_LENGTH])
        places = trail.component_place[slot, position]
        pointers, hits = trail.pointers[slot, position], trail.hits[slot, position]
        count_aligned(places, tags, pointers, hits, near_end, scratch)
    count_orders(context_end, count, scratch)
    for i in range(count):
        scratch.source[i] = (
            NEAR_ANSWER if i < near_end else (CONTEXT if i < context_end else CORPUS)
        )
    for place in range(selected):
        token = scratch.token[scratch.chosen[place]]
        scratch.present[place] = presence(token, text, row[BEGIN], chain, heads, row[HEAD_MASK])
    trail.escape_fraction[slot, position] = choose(
        selected,
        min(near, 10),
        min(context, 10),
        orders,
        scratch.source,
        features,
        scratch.present,
        escape,
        weights.choice,
        scratch,
        trail.candidate_token[slot, position],
        trail.candidate_chance[slot, position],
        trail.candidate_feature[slot, position],
        trail.candidate_feature_count[slot, position],
        trail.candidate_fraction[slot, position],
        escape_feature,
    )
    trail.candidate_count[slot, position] = selected
    likeliest = 0
    for place in range(1, selected):
        if (
            trail.candidate_chance[slot, position, place]
            > trail.candidate_chance[slot, position, likeliest]
        ):
            likeliest = place
    if selected == 0:
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
            int32_at(row[NEAR_TAGS], row[NEAR_LENGTH]),
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
        near_text = int32_at(row[NEAR_TEXT], row[NEAR_LENGTH])
        count = row[NEAR_COUNT]
        follow(near_text, len(near_text), token, count, pointers, hits, next_pointers, next_hits)
