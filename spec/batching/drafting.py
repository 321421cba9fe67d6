# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""One engine step of a batch, compiled: observe what was emitted, learn from it, draft.

Each of the three works on a range of the batch, so that threads can share the work: observing and
drafting by requests, learning by weight table, which keeps the result the same for any number of
threads.
"""

import numpy as np

from reprise.spec.corpus.token_table import link
from reprise.spec.predictor.corpus_components import advance_ranges, note_skipped, restart_ranges
from reprise.spec.predictor.features import open_weights
from reprise.spec.predictor.learning import learn_attention, learn_choice
from reprise.spec.predictor.prediction import advance, predict
from reprise.spec.predictor.row_arrays import open_context, open_near
from reprise.spec.predictor.scratch import open_scratch
from reprise.spec.predictor.trail import open_trail
from reprise.spec.runtime.compiled import compiled, int32_at
from reprise.spec.runtime.layout import (
    ACCEPTED_CONTEXT,
    BEGIN,
    CORPUS_GENERATION,
    CORPUS_ROW,
    DRAFTED,
    DRAFTED_CONTEXT,
    EMITTED,
    GENERATION,
    LEARN,
    LEARN_BEGIN,
    LENGTH,
    MAX_NEAR,
    MAX_ORDER,
    NEAR_ACCEPTED,
    NEAR_ANSWER,
    NEAR_COUNT,
    NEAR_INFO,
    NEAR_INFO_FIELDS,
    NUM_SKIPPED,
    PREDICTED,
    STEPS,
)

MOST_MISSING = 2


@compiled
def count_draft(row, trail, slot, emitted, begin, end):
    """Count the last draft, its sources and what of it was accepted; returns that."""
    accepted = 0
    while accepted < row[DRAFTED] and begin + accepted < end:
        if emitted[begin + accepted] != trail.tokens[slot, accepted]:
            break
        accepted += 1
    for i in range(row[DRAFTED]):
        source = trail.sources[slot, i]
        row[DRAFTED_CONTEXT + source] += 1
        if i < accepted:
            row[ACCEPTED_CONTEXT + source] += 1
            near = trail.nears[slot, i]
            if near >= 0:
                info = int32_at(row[NEAR_INFO], row[NEAR_COUNT] * NEAR_INFO_FIELDS)
                info[near * NEAR_INFO_FIELDS + NEAR_ACCEPTED] += 1
    return accepted


@compiled
def renew_ranges(slot, requests, corpora, trail):
    """Make the first position's ranges right again if the suffix array has changed."""
    row = requests[slot]
    corpus = corpora[row[CORPUS_ROW]]
    if row[GENERATION] != corpus[CORPUS_GENERATION]:
        text = open_context(row).text
        last, ranges = row[LENGTH] - 1, trail.ranges[slot, 0]
        restart_ranges(corpus, text, row[BEGIN], last, ranges)
        note_skipped(ranges, trail.skipped[slot, 0])
        advance_ranges(corpus, ranges, ranges, text[last])
        row[GENERATION] = corpus[CORPUS_GENERATION]


@compiled
def begin_observing(slot, emitted, begin, end, requests, corpora, trail):
    """Count the steps, each of which emitted what was accepted and one token more; returns whether
    the trail's ranges are those of the suffix array as it is."""
    row = requests[slot]
    row[LEARN] = 0
    was_drafted = row[DRAFTED] > 0
    accepted = count_draft(row, trail, slot, emitted, begin, end)
    steps = max(1, end - begin - accepted)
    # The first token of all comes from the prefill.
    row[STEPS] += steps if row[LENGTH] > row[BEGIN] + 1 or was_drafted else steps - 1
    row[EMITTED] += end - begin
    if row[PREDICTED] == 0:
        renew_ranges(slot, requests, corpora, trail)
    return row[GENERATION] == corpora[row[CORPUS_ROW], CORPUS_GENERATION]


@compiled
def finish_observing(slot, position, emitted, fresh, requests, trail):
    """Make the trail's `position` its first, and chain the `emitted` new tokens of the context."""
    row = requests[slot]
    if position > 0:
        for k in range(MAX_ORDER + 1):
            for side in range(2):
                trail.ranges[slot, 0, k, side] = trail.ranges[slot, position, k, side]
        for o in range(NUM_SKIPPED):
            for side in range(2):
                trail.skipped[slot, 0, o, side] = trail.skipped[slot, position, o, side]
        for near in range(MAX_NEAR):
            trail.pointers[slot, 0, near] = trail.pointers[slot, position, near]
            trail.hits[slot, 0, near] = trail.hits[slot, position, near]
    own = open_context(row)
    begin = own.length
    link(own.text, own.chain, own.table, own.mask, begin, begin + emitted, own.begin)
    row[LEARN_BEGIN] = row[LENGTH]
    row[LENGTH] += emitted
    row[PREDICTED] = 0
    row[DRAFTED] = 0
    if not fresh:
        row[GENERATION] = 0


@compiled
def observe_batch(slots, emitted, ends, start, stop, requests, corpora, tables, scratch_table):
    """For slots[start:stop], take what was emitted into the context and note what to learn from.

    Request i emitted emitted[ends[i - 1]:ends[i]]. Positions that its draft did not reach are
    predicted now, a few of them, to be learned from; not where nothing was predicted at all.
    """
    trail, weights = open_trail(tables[0]), open_weights(tables[1])
    scratch = open_scratch(scratch_table)
    last = trail.tokens.shape[1] - 1
    for i in range(start, stop):
        slot, begin, end = slots[i], ends[i - 1] if i > 0 else np.int64(0), ends[i]
        row = requests[slot]
        if begin == end:
            row[LEARN] = 0
            continue
        fresh = begin_observing(slot, emitted, begin, end, requests, corpora, trail)
        text = open_context(row).text
        predicted = row[PREDICTED]
        first = row[LENGTH] == row[BEGIN] + 1
        missing = 0 if fresh and (predicted > 0 or first) else MOST_MISSING
        at = np.int64(0)
        for k in range(end - begin):
            token = emitted[begin + k]
            inside = at == k and at < last
            if inside and at >= predicted and missing < MOST_MISSING:
                missing += 1
                predict(slot, at, requests, corpora, trail, scratch, weights)
                predicted = at + 1
            known = inside and at < predicted
            if known and row[LEARN] == at:
                row[LEARN] = at + 1
            text[row[LENGTH] + k] = token
            target = min(at + 1, last)
            if not (known and at + 1 < predicted and trail.tokens[slot, at] == token):
                advance(
                    slot,
                    at,
                    token,
                    known,
                    fresh,
                    requests,
                    corpora,
                    trail,
                    scratch,
                    target,
                )
                predicted = min(predicted, target)
            at = target
        finish_observing(slot, at, end - begin, fresh, requests, trail)


@compiled
def learn_batch(slots, attention, choice, requests, tables):
    """Learn from all that was observed, in the batch's order, for either weight table or both."""
    trail, weights = open_trail(tables[0]), open_weights(tables[1])
    for i in range(slots.shape[0]):
        slot = slots[i]
        row = requests[slot]
        text = open_context(row).text
        for position in range(row[LEARN]):
            token = text[row[LEARN_BEGIN] + position]
            if attention:
                table, squares = weights.attention, weights.attention_squares
                learn_attention(trail, slot, position, token, table, squares)
            if choice:
                table, squares = weights.choice, weights.choice_squares
                learn_choice(trail, slot, position, token, table, squares)


@compiled
def note_draft(slot, position, place, best, chance, requests, trail, scratch):
    """Make the candidate at `place` the draft's token at `position`; returns it."""
    row = requests[slot]
    token = trail.candidate_token[slot, position, place]
    source = scratch.source[best]
    trail.tokens[slot, position] = token
    trail.chances[slot, position] = chance
    trail.sources[slot, position] = source
    trail.nears[slot, position] = -1
    if source == NEAR_ANSWER:
        at = trail.component_place[slot, position, best]
        trail.nears[slot, position] = open_near(row).tags[at] & 255
    text = open_context(row).text
    text[row[LENGTH] + position] = token
    row[DRAFTED] = position + 1
    return token


@compiled
def draft_batch(slots, limits, least, first, stop, requests, corpora, tables, scratch_table):
    """Draft for slots[first:stop], at most limits[i] tokens each, while the chance that all of a
    draft's tokens are right is at least `least`.

    The trail's chances then go one token further than the draft: to the one that fell short, or,
    where the limit ended it, to one as likely as the drafted ones are on average.
    """
    trail, weights = open_trail(tables[0]), open_weights(tables[1])
    scratch = open_scratch(scratch_table)
    for i in range(first, stop):
        slot = slots[i]
        row = requests[slot]
        row[PREDICTED] = 0
        row[DRAFTED] = 0
        limit = min(limits[i], trail.tokens.shape[1] - 2)
        if limit > 0:
            renew_ranges(slot, requests, corpora, trail)
        chance, position = 1.0, np.int64(0)
        while position < limit:
            place, best = predict(slot, position, requests, corpora, trail, scratch, weights)
            row[PREDICTED] = position + 1
            chance *= trail.candidate_chance[slot, position, place] if place >= 0 else 0.0
            if chance < least:
                break
            token = note_draft(slot, position, place, best, chance, requests, trail, scratch)
            more = position + 1 < limit
            if more:
                advance(
                    slot,
                    position,
                    token,
                    more,
                    more,
                    requests,
                    corpora,
                    trail,
                    scratch,
                    position + 1,
                )
            position += 1
        if position == limit and limit > 0:
            chance **= 1.0 + 1.0 / limit
        trail.chances[slot, position] = chance
