# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Components from the corpus: what followed the same last tokens in all answers, per order."""

from .buckets import COUNTS, count_bucket
from .chain import bucket_of
from .compiled import compiled, int32_at
from .features import CORPUS_COUNT, CORPUS_DEPTH
from .layout import (
    COMPONENT_FEATURES,
    CORPUS_LENGTH,
    CORPUS_ORDER,
    CORPUS_SORTED,
    CORPUS_TEXT,
    END,
    MAX_COMPONENTS,
    MAX_ORDER,
    NUM_ORDERS,
    ORDERS,
    RECENT_BEGIN,
    RECENT_CHAIN,
    RECENT_HEAD_MASK,
    RECENT_HEADS,
    SUCCESSORS,
    USED_SUCCESSORS,
)
from .suffix_array import narrow, successors

MAX_RECENT_VISITS = 192


@compiled
def advance_ranges(corpus, before, after, token):
    """Ranges [MAX_ORDER + 1, 2] per order after one more token. Row 0 is the whole suffix array.

    `after` may be `before`.
    """
    size = corpus[CORPUS_SORTED]
    after[0, 0], after[0, 1] = 0, size
    before_low, before_high = 0, size
    text = int32_at(corpus[CORPUS_TEXT], corpus[CORPUS_LENGTH])
    order = int32_at(corpus[CORPUS_ORDER], size)
    k = 0
    while k < MAX_ORDER and before_high > before_low:
        low, high = narrow(text, order, k, before_low, before_high, token)
        k += 1
        before_low, before_high = before[k, 0], before[k, 1]
        after[k, 0], after[k, 1] = low, high
        if low == high:
            break
    for i in range(k + 1, MAX_ORDER + 1):
        after[i, 0], after[i, 1] = 0, 0


@compiled
def restart_ranges(corpus, text, begin, n, ranges):
    """Ranges for text[:n] from nothing, as after the suffix array has changed."""
    for k in range(MAX_ORDER + 1):
        ranges[k, 0], ranges[k, 1] = 0, 0
    ranges[0, 1] = corpus[CORPUS_SORTED]
    for i in range(max(begin, n - MAX_ORDER), n):
        advance_ranges(corpus, ranges, ranges, text[i])


@compiled
def add_recent(corpus, text, begin, n, totals, tokens, counts, numbers):
    """Count the successors among the recent answers into those of the suffix array."""
    corpus_text = int32_at(corpus[CORPUS_TEXT], corpus[CORPUS_LENGTH])
    recent = corpus[RECENT_BEGIN]
    chain = int32_at(corpus[RECENT_CHAIN], 1 << 30)
    heads = int32_at(corpus[RECENT_HEADS], corpus[RECENT_HEAD_MASK] + 1)
    last = text[n - 1]
    i = heads[bucket_of(last, corpus[RECENT_HEAD_MASK])]
    visits = 0
    while i >= recent and visits < MAX_RECENT_VISITS:
        visits += 1
        token = corpus_text[i + 1]
        if corpus_text[i] == last and token != END:
            match = 1
            while (
                match < MAX_ORDER
                and n - 1 - match >= begin
                and i - match >= recent
                and corpus_text[i - match] == text[n - 1 - match]
            ):
                match += 1
            for o in range(NUM_ORDERS):
                if ORDERS[o] > match:
                    break
                totals[o] += 1
                k = 0
                while k < numbers[o] and tokens[o, k] != token:
                    k += 1
                if k < numbers[o]:
                    counts[o, k] += 1
                elif k < SUCCESSORS:
                    tokens[o, k], counts[o, k] = token, 1
                    numbers[o] += 1
        i = chain[i - recent]


@compiled
def add_corpus_components(
    corpus, text, begin, n, ranges, scratch, tokens, places, matches, features, count
):
    """Components of each order's most frequent successors; returns (new count, orders found)."""
    corpus_text = int32_at(corpus[CORPUS_TEXT], corpus[CORPUS_LENGTH])
    order = int32_at(corpus[CORPUS_ORDER], corpus[CORPUS_SORTED])
    totals, numbers = scratch.corpus_total, scratch.successors
    found_token, found_count = scratch.successor_token, scratch.successor_count
    for o in range(NUM_ORDERS):
        low, high = ranges[ORDERS[o], 0], ranges[ORDERS[o], 1]
        totals[o], numbers[o] = high - low, 0
        if high > low and o > 0 and totals[o] == totals[o - 1]:
            numbers[o] = numbers[o - 1]
            for k in range(numbers[o]):
                found_token[o, k], found_count[o, k] = (
                    found_token[o - 1, k],
                    found_count[o - 1, k],
                )
        elif high > low:
            numbers[o] = successors(
                corpus_text, order, ORDERS[o], low, high, found_token[o], found_count[o]
            )
    add_recent(corpus, text, begin, n, totals, found_token, found_count, numbers)
    top = -1
    for o in range(NUM_ORDERS):
        if totals[o] > 0:
            top = o
    for o in range(top + 1):
        total_cell = count_bucket(totals[o])
        depth = min(top - o, 5)
        for k in range(min(numbers[o], USED_SUCCESSORS)):
            if count >= MAX_COMPONENTS:
                break
            bucket = count_bucket(found_count[o, k])
            tokens[count], places[count], matches[count] = found_token[o, k], -1, 0
            features[count, 0] = CORPUS_COUNT + (o * COUNTS + bucket) * COUNTS + total_cell
            features[count, 1] = CORPUS_DEPTH + depth * COUNTS + bucket
            for f in range(2, COMPONENT_FEATURES):
                features[count, f] = 0
            count += 1
    return count, top + 1
