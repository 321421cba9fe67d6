# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Evidence from the request's own prompt and output.

Arguments of both: the Context, of which text[:n] has been emitted or drafted; the trace's
Evidence, of which the first `count` are there already. Both return the new count.
"""

from reprise.spec.corpus.token_table import first_position
from reprise.spec.predictor.buckets import (
    MATCHES,
    SECOND_MATCHES,
    coarse_match_bucket,
    match_bucket,
    recency_bucket,
    second_match_bucket,
)
from reprise.spec.predictor.features import CONTEXT_MATCH, CONTEXT_RECENCY, CONTEXT_SKIPPED
from reprise.spec.predictor.prediction_trace import put_evidence
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import BOS

MAX_CONTEXT_EVIDENCE = 40
MAX_VISITS = 384
MAX_SKIPPED = 12
MAX_SKIPPED_VISITS = 16  # of positions where the last token but one occurs: it may do so often
LONGEST = 32
LONGEST_SKIPPED = 16


@compiled
def context_match(text, n, i):
    """(match, second match) of what ends at text[i] with what ends at text[n - 1]."""
    match = 1
    while match < LONGEST and i - match >= 0 and text[i - match] == text[n - 1 - match]:
        match += 1
    second = 0
    a, b = i - match - 1, n - 2 - match
    while second < 8 and a - second >= 0 and text[a - second] == text[b - second]:
        second += 1
    return match, second


@compiled
def add_context_evidence(context, n, evidence, count):
    """Evidence where the last token of text[:n] occurs in text[:length]."""
    text, length = context.text, context.length
    limit, visits, last = count + MAX_CONTEXT_EVIDENCE, 0, text[n - 1]
    i = first_position(context.table, context.mask, last)
    while i >= 0 and count < limit and visits < MAX_VISITS:
        visits += 1
        if i + 1 < length and text[i + 1] != BOS:
            match, second = context_match(text, n, i)
            region = 0 if i < context.begin else 1
            cell = (region * MATCHES + match_bucket(match)) * SECOND_MATCHES
            first = CONTEXT_MATCH + cell + second_match_bucket(second)
            recency = CONTEXT_RECENCY + recency_bucket(n - i) * 5 + coarse_match_bucket(match)
            put_evidence(evidence, count, text[i + 1], match, first, recency)
            count += 1
        i = context.chain[i]
    return count


@compiled
def add_context_skipped(context, n, evidence, count):
    """Evidence where all but the last token match: it replaces one of theirs, or was put in."""
    text, length = context.text, context.length
    limit, visits = count + MAX_SKIPPED, 0
    if n < 2:
        return count
    last, key = text[n - 1], text[n - 2]
    i = first_position(context.table, context.mask, key)
    while i >= 0 and count < limit and visits < MAX_SKIPPED_VISITS:
        visits += 1
        if i + 2 < length and text[i + 1] != last and text[i + 1] != BOS:
            match = 1
            while (
                match < LONGEST_SKIPPED
                and i - match >= 0
                and text[i - match] == text[n - 2 - match]
            ):
                match += 1
            if match >= 2:
                for kind in range(2):
                    token = text[i + 2 - kind]
                    if token == BOS:
                        continue
                    cell = kind * SECOND_MATCHES + second_match_bucket(match)
                    put_evidence(evidence, count, token, 0, CONTEXT_SKIPPED + cell, 0)
                    count += 1
        i = context.chain[i]
    return count
