# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Prediction at one position of the trace: evidence, the mixture, choice; then the next state."""

from typing import Any, NamedTuple

from reprise.spec.predictor.alignment import advance_alignment, follow
from reprise.spec.predictor.candidate_features import (
    clear_counts,
    count_aligned,
    count_matches,
    count_successors,
)
from reprise.spec.predictor.choice import argmax_candidate, choose, select_candidates
from reprise.spec.predictor.context_evidence import add_context_evidence, add_context_skipped
from reprise.spec.predictor.corpus_evidence import (
    add_corpus_evidence,
    add_corpus_skipped,
    advance_ranges,
    note_skipped,
)
from reprise.spec.predictor.mixture import gather_candidates, mix_evidence
from reprise.spec.predictor.near_evidence import (
    add_clause_switches,
    add_near_evidence,
    add_near_skipped,
)
from reprise.spec.predictor.prediction_trace import candidates_at, evidence_at
from reprise.spec.predictor.row_arrays import open_context, open_near
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
    """Where the evidence of each source ends, one after the other, and how far it reaches."""

    near_end: Any
    context_end: Any
    corpus_end: Any  # from here on, to `count`, of the tokens before the last alone
    count: Any
    longest_near: Any  # matches
    longest_context: Any
    orders: Any


@compiled
def longest_match(evidence, begin, end):
    """Return the longest match of the evidence begin..end."""
    longest = 0
    for i in range(begin, end):
        longest = max(longest, evidence.match[i])
    return longest


@compiled
def collect(req_idx, position, requests, corpora, trace, scratch):
    """Fill the trace's evidence."""
    row = requests[req_idx]
    context = open_context(row)
    n = row[LENGTH] + position
    evidence = evidence_at(trace, req_idx, position)
    count = 0
    if row[NEAR_COUNT] > 0:
        near_texts = open_near(row)
        pointers, hits = trace.pointers[req_idx, position], trace.hits[req_idx, position]
        count = add_near_evidence(context, n, near_texts, pointers, hits, evidence, count)
        count = add_near_skipped(context, n, near_texts, pointers, hits, evidence, count)
        if row[CLAUSES] > 1:
            count = add_clause_switches(near_texts, pointers, hits, evidence, count)
    near_end = count
    count = add_context_evidence(context, n, evidence, count)
    count = add_context_skipped(context, n, evidence, count)
    context_end = count
    corpus = corpora[row[CORPUS_ROW]]
    text, begin = context.text, context.begin
    ranges, skipped = trace.ranges[req_idx, position], trace.skipped[req_idx, position]
    count, orders = add_corpus_evidence(corpus, text, begin, n, ranges, scratch, evidence, count)
    corpus_end = count
    count = add_corpus_skipped(corpus, text, begin, n, skipped, scratch, evidence, count)
    trace.evidence_count[req_idx, position] = count
    trace.evidence_near_count[req_idx, position] = near_end
    return Found(
        near_end,
        context_end,
        corpus_end,
        count,
        longest_match(evidence, 0, near_end),
        longest_match(evidence, near_end, context_end),
        orders,
    )


@compiled
def count_all(found, selected, row, pointers, hits, evidence, scratch):
    """Count for the chosen candidates what their features need."""
    near_end, context_end, matches = found.near_end, found.context_end, evidence.match
    clear_counts(selected, scratch)
    count_matches(matches, 0, near_end, selected, scratch, scratch.near_count, scratch.near_total)
    context_count, context_total = scratch.context_count, scratch.context_total
    count_matches(matches, near_end, context_end, selected, scratch, context_count, context_total)
    if near_end > 0:
        count_aligned(evidence, near_end, open_near(row).tags, pointers, hits, scratch)
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
def predict(req_idx, position, requests, corpora, trace, scratch, weights):
    """Predict the token at a position of the trace whose ranges and alignment are there already.

    Return the rank of the likeliest candidate and the index of the best piece of evidence for it;
    (-1, -1) if there is none.
    """
    row = requests[req_idx]
    found = collect(req_idx, position, requests, corpora, trace, scratch)
    evidence = evidence_at(trace, req_idx, position)
    candidates = candidates_at(trace, req_idx, position)
    escape_feature = trace.escape_feature[req_idx, position]
    number = gather_candidates(evidence.token, found.count, scratch)
    escape = mix_evidence(
        evidence.feature,
        found.count,
        found.longest_near,
        found.longest_context,
        found.orders,
        weights.mixture,
        escape_feature,
        evidence.weight,
        scratch,
    )
    trace.escape_weight[req_idx, position] = escape
    selected = select_candidates(number, scratch)
    pointers, hits = trace.pointers[req_idx, position], trace.hits[req_idx, position]
    count_all(found, selected, row, pointers, hits, evidence, scratch)
    trace.escape_fraction[req_idx, position] = choose(
        selected,
        open_context(row),
        open_near(row),
        row[LENGTH] + position,
        row[SALT],
        found.longest_near,
        found.longest_context,
        found.orders,
        evidence,
        escape,
        weights.choice,
        escape_feature,
        candidates,
        scratch,
    )
    trace.candidate_count[req_idx, position] = selected
    best = argmax_candidate(selected, candidates)
    if best < 0:
        return -1, -1
    return best, scratch.best[scratch.chosen[best]]


@compiled
def advance(req_idx, position, token, known, fresh, requests, corpora, trace, scratch, target):
    """Write into the trace's `target` position the ranges and alignment after `token`.

    known: whether `position` holds evidence; without it, near answers move on by one.
    fresh: whether the ranges are those of the suffix array as it is now.
    """
    row = requests[req_idx]
    if fresh:
        corpus = corpora[row[CORPUS_ROW]]
        note_skipped(trace.ranges[req_idx, position], trace.skipped[req_idx, target])
        advance_ranges(
            corpus, trace.ranges[req_idx, position], trace.ranges[req_idx, target], token
        )
    if row[NEAR_COUNT] == 0:
        return
    pointers, hits = trace.pointers[req_idx, position], trace.hits[req_idx, position]
    next_pointers, next_hits = trace.pointers[req_idx, target], trace.hits[req_idx, target]
    if known:
        advance_alignment(
            trace.evidence_token[req_idx, position],
            trace.evidence_position[req_idx, position],
            trace.evidence_match[req_idx, position],
            open_near(row).tags,
            trace.evidence_near_count[req_idx, position],
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
