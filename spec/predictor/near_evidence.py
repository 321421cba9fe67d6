# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Evidence from near answers: positions in them that predict the next token.

Its features are indices into the mixture's weights; what they say is in features.py.

Arguments of all: the Context, of which text[:n] has been emitted or drafted; the NearTexts, with
their alignment `pointers` and `hits` [MAX_NEAR]; the trace's Evidence, of which the first `count`
are there already. All return the new count.
"""

from reprise.spec.corpus.token_table import first_position
from reprise.spec.predictor.buckets import (
    DISTANCES,
    HITS,
    SECOND_MATCHES,
    UNKNOWN_DISTANCE,
    coarse_match_bucket,
    distance_bucket,
    hit_bucket,
    match_bucket,
    second_match_bucket,
)
from reprise.spec.predictor.features import (
    NEAR_ANSWER_RANK,
    NEAR_CLAUSE_SWITCH,
    NEAR_DISTANCE,
    NEAR_HITS,
    NEAR_LIKENESS,
    NEAR_MATCH,
    NEAR_PROMPTS,
    NEAR_SKIPPED,
)
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import (
    BOS,
    END,
    NEAR_CLAUSE,
    NEAR_INFO_FIELDS,
    NEAR_RANK,
    NEAR_SIMILARITY,
    NEAR_START,
)

MAX_NEAR_EVIDENCE = 96
MAX_VISITS = 512
MAX_SKIPPED = 24
MAX_SKIPPED_VISITS = 48  # of positions where the last token but one occurs: it may do so often
LONGEST = 32
LONGEST_SKIPPED = 16
REACHED_START = 4  # what a match is worth more for reaching the answer's beginning
SKIPPED_BLOCK = 10  # of NEAR_DISTANCE, after those of the matches
CLAUSE_SWITCH_BLOCK = 11


@compiled
def put_near(evidence, count, position, match, first, block, near_texts, pointers, hits):
    """Write the piece of evidence that predicts near_texts.text[position]; `first`: a feature."""
    tag = near_texts.tags[position]
    near = tag & 255
    at = near * NEAR_INFO_FIELDS
    info = near_texts.info
    pointer = pointers[near]
    distance = distance_bucket(position - pointer) if pointer >= 0 else UNKNOWN_DISTANCE
    cell = coarse_match_bucket(match)
    evidence.token[count] = near_texts.text[position]
    evidence.position[count], evidence.match[count] = position, match
    features = evidence.feature[count]
    features[0] = first
    features[1] = NEAR_DISTANCE + block * DISTANCES + distance
    features[2] = NEAR_LIKENESS + info[at + NEAR_SIMILARITY] * 5 + cell
    features[3] = NEAR_ANSWER_RANK + info[at + NEAR_RANK] * 5 + cell
    features[4] = NEAR_PROMPTS + (tag >> 8) * 5 + cell
    features[5] = NEAR_HITS + hit_bucket(hits[near]) * 5 + cell


@compiled
def near_match(near_text, text, begin, n, i):
    """(match, second match) of what ends at near_text[i] with what ends at text[n - 1]."""
    match = 1
    while (
        match < LONGEST and n - 1 - match >= begin and near_text[i - match] == text[n - 1 - match]
    ):
        if near_text[i - match] == BOS:
            return match + 1 + REACHED_START, 8
        match += 1
    if near_text[i - match + 1] == BOS:
        return match + REACHED_START, 8
    if near_text[i - match] == BOS:
        return match, 4
    second = 0
    a, b = i - match - 1, n - 2 - match
    while second < 8 and b - second >= begin and near_text[a - second] == text[b - second]:
        if near_text[a - second] == BOS:
            return match, 8
        second += 1
    return match, second


@compiled
def add_near_evidence(context, n, near_texts, pointers, hits, evidence, count):
    """Evidence where the last token occurs in a near answer."""
    text, near_text = context.text, near_texts.text
    limit, visits, last = count + MAX_NEAR_EVIDENCE, 0, text[n - 1]
    i = first_position(near_texts.table, near_texts.mask, last)
    while i >= 0 and count < limit and visits < MAX_VISITS:
        visits += 1
        if near_text[i + 1] != END:
            match, second = near_match(near_text, text, context.begin, n, i)
            bucket = match_bucket(match)
            first = NEAR_MATCH + bucket * SECOND_MATCHES + second_match_bucket(second)
            put_near(evidence, count, i + 1, match, first, bucket, near_texts, pointers, hits)
            count += 1
        i = near_texts.chain[i]
    return count


@compiled
def match_before_last(near_text, text, begin, n, i):
    """How many tokens up to near_text[i] equal those up to text[n - 2]; all, if to the start."""
    match = 1
    while (
        match < LONGEST_SKIPPED
        and n - 2 - match >= begin
        and near_text[i - match] == text[n - 2 - match]
    ):
        if near_text[i - match] == BOS:
            return LONGEST_SKIPPED
        match += 1
    return match


@compiled
def add_near_skipped(context, n, near_texts, pointers, hits, evidence, count):
    """Evidence where all but the last token match: it replaces one of theirs, or was put in."""
    text, near_text = context.text, near_texts.text
    limit, visits = count + MAX_SKIPPED, 0
    if n - 2 < context.begin:
        return count
    last, key = text[n - 1], text[n - 2]
    i = first_position(near_texts.table, near_texts.mask, key)
    while i >= 0 and count < limit and visits < MAX_SKIPPED_VISITS:
        visits += 1
        if near_text[i + 1] != END and near_text[i + 1] != last:
            match = match_before_last(near_text, text, context.begin, n, i)
            if match >= 2 or key == BOS:
                for kind in range(2):
                    position = i + 2 - kind
                    if near_text[position] == END:
                        continue
                    first = NEAR_SKIPPED + kind * SECOND_MATCHES + second_match_bucket(match)
                    block = SKIPPED_BLOCK + kind
                    put_near(evidence, count, position, 0, first, block, near_texts, pointers, hits)
                    count += 1
        i = near_texts.chain[i]
    return count


@compiled
def add_clause_switches(near_texts, pointers, hits, evidence, count):
    """Evidence for the first tokens of near answers of clauses that have not had their turn.

    The fewer tokens the leading near answer has left, the likelier another clause's takes over.
    """
    near_text, info = near_texts.text, near_texts.info
    leader = 0
    for near in range(near_texts.count):
        if hits[near] > hits[leader]:
            leader = near
    left = 0
    at = max(pointers[leader], 0)
    while left < 4 and at + left < near_text.shape[0] and near_text[at + left] != END:
        left += 1
    nearness = 0 if left <= 1 else (1 if left == 2 else (2 if left == 3 else 3))
    first = NEAR_CLAUSE_SWITCH + nearness * HITS + hit_bucket(hits[leader])
    clause = info[leader * NEAR_INFO_FIELDS + NEAR_CLAUSE]
    for near in range(near_texts.count):
        at = near * NEAR_INFO_FIELDS
        if info[at + NEAR_CLAUSE] == clause or info[at + NEAR_RANK] > 1:
            continue
        position = info[at + NEAR_START] + 1
        put_near(
            evidence, count, position, 0, first, CLAUSE_SWITCH_BLOCK, near_texts, pointers, hits
        )
        count += 1
    return count
