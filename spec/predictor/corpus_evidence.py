# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Evidence from the corpus: what followed the same last tokens in all answers, per order."""

from reprise.spec.corpus.chain import bucket_of
from reprise.spec.corpus.suffix_array import narrow, successors
from reprise.spec.predictor.buckets import COUNTS, count_bucket
from reprise.spec.predictor.features import CORPUS_COUNT, CORPUS_DEPTH, CORPUS_SKIPPED
from reprise.spec.predictor.prediction_trace import put_evidence
from reprise.spec.runtime.compiled import compiled, int32_at
from reprise.spec.runtime.layout import (
    CORPUS_LENGTH,
    CORPUS_ORDER,
    CORPUS_SORTED,
    CORPUS_TEXT,
    MAX_EVIDENCE,
    MAX_ORDER,
    NUM_ORDERS,
    NUM_SKIPPED,
    ORDERS,
    RECENT_BEGIN,
    RECENT_CHAIN,
    RECENT_HEAD_MASK,
    RECENT_HEADS,
    SKIPPED_ORDERS,
    SUCCESSORS,
    USED_SKIPPED,
    USED_SUCCESSORS,
)

MAX_RECENT_VISITS = 64
MAX_SKIPPED_LOOKS = 32


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
        if corpus_text[i] == last and token >= 0:
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
def add_corpus_evidence(corpus, text, begin, n, ranges, scratch, evidence, count):
    """Evidence of each order's most frequent successors; returns (new count, orders found)."""
    corpus_text = int32_at(corpus[CORPUS_TEXT], corpus[CORPUS_LENGTH])
    order = int32_at(corpus[CORPUS_ORDER], corpus[CORPUS_SORTED])
    totals, numbers = scratch.corpus_total, scratch.successors
    found_token, found_count = scratch.successor_token, scratch.successor_count
    size = 0
    for o in range(NUM_ORDERS):
        low, high = ranges[ORDERS[o], 0], ranges[ORDERS[o], 1]
        totals[o], numbers[o] = 0, 0
        size_before, size = size, high - low
        if size > 0 and size == size_before:
            totals[o], numbers[o] = totals[o - 1], numbers[o - 1]
            for k in range(numbers[o]):
                found_token[o, k], found_count[o, k] = (
                    found_token[o - 1, k],
                    found_count[o - 1, k],
                )
        elif size > 0:
            numbers[o], totals[o] = successors(
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
            if count >= MAX_EVIDENCE:
                break
            bucket = count_bucket(found_count[o, k])
            first = CORPUS_COUNT + (o * COUNTS + bucket) * COUNTS + total_cell
            second = CORPUS_DEPTH + depth * COUNTS + bucket
            put_evidence(evidence, count, found_token[o, k], 0, first, second)
            count += 1
    return count, top + 1


@compiled
def note_skipped(ranges, skipped):
    """Keep, of the ranges [MAX_ORDER + 1, 2] before the last token, those of SKIPPED_ORDERS."""
    for o in range(NUM_SKIPPED):
        for side in range(2):
            skipped[o, side] = ranges[SKIPPED_ORDERS[o], side]


@compiled
def count_beyond(o, token, scratch):
    """Count a successor beyond the last token for one of SKIPPED_ORDERS."""
    scratch.skipped_total[o] += 1
    number, k = scratch.beyond[o], 0
    while k < number and scratch.beyond_token[o, k] != token:
        k += 1
    if k < number:
        scratch.beyond_count[o, k] += 1
    elif k < SUCCESSORS:
        scratch.beyond_token[o, k], scratch.beyond_count[o, k] = token, 1
        scratch.beyond[o] += 1


@compiled
def count_sorted_beyond(corpus, last, skipped, scratch):
    """Count, among the sorted answers, what follows the tokens before the last and another than
    the last: of MAX_SKIPPED_LOOKS positions at even distances where there are more. A single token
    that is so frequent says too little to be looked up."""
    corpus_text = int32_at(corpus[CORPUS_TEXT], corpus[CORPUS_LENGTH])
    order = int32_at(corpus[CORPUS_ORDER], corpus[CORPUS_SORTED])
    for o in range(NUM_SKIPPED):
        low, size = skipped[o, 0], skipped[o, 1] - skipped[o, 0]
        if o == 0 and size > MAX_SKIPPED_LOOKS:
            continue
        looks = min(size, MAX_SKIPPED_LOOKS)
        for look in range(looks):
            at = order[low + size * look // looks] + SKIPPED_ORDERS[o]
            theirs = corpus_text[at]
            if theirs < 0 or theirs == last or corpus_text[at + 1] < 0:
                continue
            count_beyond(o, corpus_text[at + 1], scratch)


@compiled
def count_recent_beyond(corpus, text, begin, n, scratch):
    """Count the same among the recent answers, newest positions first."""
    corpus_text = int32_at(corpus[CORPUS_TEXT], corpus[CORPUS_LENGTH])
    recent = corpus[RECENT_BEGIN]
    chain = int32_at(corpus[RECENT_CHAIN], 1 << 30)
    heads = int32_at(corpus[RECENT_HEADS], corpus[RECENT_HEAD_MASK] + 1)
    last, key = text[n - 1], text[n - 2]
    i = heads[bucket_of(key, corpus[RECENT_HEAD_MASK])]
    visits = 0
    while i >= recent and visits < MAX_RECENT_VISITS:
        visits += 1
        theirs = corpus_text[i + 1]
        if corpus_text[i] == key and theirs >= 0 and theirs != last and corpus_text[i + 2] >= 0:
            match = 1
            while (
                match < SKIPPED_ORDERS[NUM_SKIPPED - 1]
                and n - 2 - match >= begin
                and i - match >= recent
                and corpus_text[i - match] == text[n - 2 - match]
            ):
                match += 1
            for o in range(NUM_SKIPPED):
                if SKIPPED_ORDERS[o] <= match:
                    count_beyond(o, corpus_text[i + 2], scratch)
        i = chain[i - recent]


@compiled
def rank_beyond(o, scratch):
    """Order the successors beyond the last token by falling count, the first found first."""
    tokens, counts = scratch.beyond_token[o], scratch.beyond_count[o]
    for k in range(1, scratch.beyond[o]):
        token, count, rank = tokens[k], counts[k], k
        while rank > 0 and counts[rank - 1] < count:
            tokens[rank], counts[rank] = tokens[rank - 1], counts[rank - 1]
            rank -= 1
        tokens[rank], counts[rank] = token, count


@compiled
def add_corpus_skipped(corpus, text, begin, n, skipped, scratch, evidence, count):
    """Evidence from answers in which all but the last token match and another is in its position;
    `skipped` as `note_skipped` keeps them. Returns the new count."""
    for o in range(NUM_SKIPPED):
        scratch.skipped_total[o], scratch.beyond[o] = 0, 0
    if n - 2 < begin:
        return count
    count_sorted_beyond(corpus, text[n - 1], skipped, scratch)
    count_recent_beyond(corpus, text, begin, n, scratch)
    for o in range(NUM_SKIPPED):
        rank_beyond(o, scratch)
        total_cell = count_bucket(scratch.skipped_total[o])
        for k in range(min(scratch.beyond[o], USED_SKIPPED)):
            if count >= MAX_EVIDENCE:
                break
            bucket = count_bucket(scratch.beyond_count[o, k])
            first = CORPUS_SKIPPED + (o * COUNTS + bucket) * COUNTS + total_cell
            put_evidence(evidence, count, scratch.beyond_token[o, k], 0, first, 0)
            count += 1
    return count
