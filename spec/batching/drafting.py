# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""One engine step of a batch, compiled: observe what was emitted, learn from it, draft.

Each of the three works on a range of the batch, so that threads can share the work: observing and
drafting by requests, learning by weight table, which keeps the result the same for any number of
threads.
"""

import numpy as np

from reprise.spec.corpus.token_table import link
from reprise.spec.predictor.corpus_evidence import advance_ranges, note_skipped, restart_ranges
from reprise.spec.predictor.features import open_weights
from reprise.spec.predictor.learning import learn_choice, learn_mixture
from reprise.spec.predictor.prediction import advance, predict
from reprise.spec.predictor.prediction_trace import open_trace
from reprise.spec.predictor.row_arrays import open_context, open_near
from reprise.spec.predictor.scratch import open_scratch
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

MAX_MISSING = 2


@compiled
def count_draft(row, trace, req_idx, emitted, begin, end):
    """Count the last draft, its sources and what of it was accepted; returns that."""
    accepted = 0
    while accepted < row[DRAFTED] and begin + accepted < end:
        if emitted[begin + accepted] != trace.tokens[req_idx, accepted]:
            break
        accepted += 1
    for i in range(row[DRAFTED]):
        source = trace.sources[req_idx, i]
        row[DRAFTED_CONTEXT + source] += 1
        if i < accepted:
            row[ACCEPTED_CONTEXT + source] += 1
            near = trace.nears[req_idx, i]
            if near >= 0:
                info = int32_at(row[NEAR_INFO], row[NEAR_COUNT] * NEAR_INFO_FIELDS)
                info[near * NEAR_INFO_FIELDS + NEAR_ACCEPTED] += 1
    return accepted


@compiled
def renew_ranges(req_idx, requests, corpora, trace):
    """Make the first position's ranges right again if the suffix array has changed."""
    row = requests[req_idx]
    corpus = corpora[row[CORPUS_ROW]]
    if row[GENERATION] != corpus[CORPUS_GENERATION]:
        text = open_context(row).text
        last, ranges = row[LENGTH] - 1, trace.ranges[req_idx, 0]
        restart_ranges(corpus, text, row[BEGIN], last, ranges)
        note_skipped(ranges, trace.skipped[req_idx, 0])
        advance_ranges(corpus, ranges, ranges, text[last])
        row[GENERATION] = corpus[CORPUS_GENERATION]


@compiled
def begin_observing(req_idx, emitted, begin, end, requests, corpora, trace):
    """Count the steps, each of which emitted what was accepted and one token more; returns whether
    the trace's ranges are those of the suffix array as it is."""
    row = requests[req_idx]
    row[LEARN] = 0
    was_drafted = row[DRAFTED] > 0
    accepted = count_draft(row, trace, req_idx, emitted, begin, end)
    steps = max(1, end - begin - accepted)
    # The first token of all comes from the prefill.
    row[STEPS] += steps if row[LENGTH] > row[BEGIN] + 1 or was_drafted else steps - 1
    row[EMITTED] += end - begin
    if row[PREDICTED] == 0:
        renew_ranges(req_idx, requests, corpora, trace)
    return row[GENERATION] == corpora[row[CORPUS_ROW], CORPUS_GENERATION]


@compiled
def finish_observing(req_idx, position, emitted, fresh, requests, trace):
    """Make the trace's `position` its first, and chain the `emitted` new tokens of the context."""
    row = requests[req_idx]
    if position > 0:
        for k in range(MAX_ORDER + 1):
            for side in range(2):
                trace.ranges[req_idx, 0, k, side] = trace.ranges[req_idx, position, k, side]
        for o in range(NUM_SKIPPED):
            for side in range(2):
                trace.skipped[req_idx, 0, o, side] = trace.skipped[req_idx, position, o, side]
        for near in range(MAX_NEAR):
            trace.pointers[req_idx, 0, near] = trace.pointers[req_idx, position, near]
            trace.hits[req_idx, 0, near] = trace.hits[req_idx, position, near]
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
def observe_batch(
    req_indices, emitted, ends, start, stop, requests, corpora, tables, scratch_table
):
    """For req_indices[start:stop], record what was emitted and note what to learn from.

    Request i emitted emitted[ends[i - 1]:ends[i]]. Positions that its draft did not reach are
    predicted now, a few of them, to be learned from; not where nothing was predicted at all.
    """
    trace, weights = open_trace(tables[0]), open_weights(tables[1])
    scratch = open_scratch(scratch_table)
    last = trace.tokens.shape[1] - 1
    for i in range(start, stop):
        req_idx, begin, end = req_indices[i], ends[i - 1] if i > 0 else np.int64(0), ends[i]
        row = requests[req_idx]
        if begin == end:
            row[LEARN] = 0
            continue
        fresh = begin_observing(req_idx, emitted, begin, end, requests, corpora, trace)
        text = open_context(row).text
        predicted = row[PREDICTED]
        first = row[LENGTH] == row[BEGIN] + 1
        missing = 0 if fresh and (predicted > 0 or first) else MAX_MISSING
        at = np.int64(0)
        for k in range(end - begin):
            token = emitted[begin + k]
            inside = at == k and at < last
            if inside and at >= predicted and missing < MAX_MISSING:
                missing += 1
                predict(req_idx, at, requests, corpora, trace, scratch, weights)
                predicted = at + 1
            known = inside and at < predicted
            if known and row[LEARN] == at:
                row[LEARN] = at + 1
            text[row[LENGTH] + k] = token
            target = min(at + 1, last)
            if not (known and at + 1 < predicted and trace.tokens[req_idx, at] == token):
                advance(
                    req_idx,
                    at,
                    token,
                    known,
                    fresh,
                    requests,
                    corpora,
                    trace,
                    scratch,
                    target,
                )
                predicted = min(predicted, target)
            at = target
        finish_observing(req_idx, at, end - begin, fresh, requests, trace)


@compiled
def learn_batch(req_indices, mixture, choice, requests, tables):
    """Learn from all that was observed, in the batch's order, for either weight table or both."""
    trace, weights = open_trace(tables[0]), open_weights(tables[1])
    for i in range(req_indices.shape[0]):
        req_idx = req_indices[i]
        row = requests[req_idx]
        text = open_context(row).text
        for position in range(row[LEARN]):
            token = text[row[LEARN_BEGIN] + position]
            if mixture:
                table, squares = weights.mixture, weights.mixture_squares
                learn_mixture(trace, req_idx, position, token, table, squares)
            if choice:
                table, squares = weights.choice, weights.choice_squares
                learn_choice(trace, req_idx, position, token, table, squares)


@compiled
def note_draft(req_idx, position, rank, best, prob, requests, trace, scratch):
    """Make the candidate at `rank` the draft's token at `position`; returns it."""
    row = requests[req_idx]
    token = trace.candidate_token[req_idx, position, rank]
    source = scratch.source[best]
    trace.tokens[req_idx, position] = token
    trace.probs[req_idx, position] = prob
    trace.sources[req_idx, position] = source
    trace.nears[req_idx, position] = -1
    if source == NEAR_ANSWER:
        at = trace.evidence_position[req_idx, position, best]
        trace.nears[req_idx, position] = open_near(row).tags[at] & 255
    text = open_context(row).text
    text[row[LENGTH] + position] = token
    row[DRAFTED] = position + 1
    return token


@compiled
def draft_batch(
    req_indices, limits, min_prob, first, stop, requests, corpora, tables, scratch_table
):
    """Draft for req_indices[first:stop], at most limits[i] tokens each, while the probability that
    all of a draft's tokens are right is at least `min_prob`.

    The trace's probabilities then go one token further than the draft: to the one that fell short,
    or, where the limit ended it, to one as likely as the drafted ones are on average.
    """
    trace, weights = open_trace(tables[0]), open_weights(tables[1])
    scratch = open_scratch(scratch_table)
    for i in range(first, stop):
        req_idx = req_indices[i]
        row = requests[req_idx]
        row[PREDICTED] = 0
        row[DRAFTED] = 0
        limit = min(limits[i], trace.tokens.shape[1] - 2)
        if limit > 0:
            renew_ranges(req_idx, requests, corpora, trace)
        prob, position = 1.0, np.int64(0)
        while position < limit:
            rank, best = predict(req_idx, position, requests, corpora, trace, scratch, weights)
            row[PREDICTED] = position + 1
            prob *= trace.candidate_prob[req_idx, position, rank] if rank >= 0 else 0.0
            if prob < min_prob:
                break
            token = note_draft(req_idx, position, rank, best, prob, requests, trace, scratch)
            more = position + 1 < limit
            if more:
                advance(
                    req_idx,
                    position,
                    token,
                    more,
                    more,
                    requests,
                    corpora,
                    trace,
                    scratch,
                    position + 1,
                )
            position += 1
        if position == limit and limit > 0:
            prob **= 1.0 + 1.0 / limit
        trace.probs[req_idx, position] = prob
