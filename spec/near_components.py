# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Components from near answers: places in them that predict the next token.

A component is one place that predicts one token. Its features are indices into the attention
weights; what they say is in features.py.
"""

from .buckets import (
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
from .chain import bucket_of
from .compiled import compiled
from .features import (
    NEAR_DISTANCE,
    NEAR_HITS,
    NEAR_LIKENESS,
    NEAR_MATCH,
    NEAR_PLACE,
    NEAR_SKIPPED,
    NEAR_SLOT,
    NEAR_TAKEOVER,
)
from .layout import (
    BOS,
    END,
    NEAR_CLAUSE,
    NEAR_INFO_FIELDS,
    NEAR_RANK,
    NEAR_SIMILARITY,
    NEAR_START,
)

MAX_NEAR_COMPONENTS = 96
MAX_SKIPPED = 24
MAX_VISITS = 512
LONGEST = 32
REACHED_START = 4  # what a match is worth more for reaching the answer's beginning


@compiled
def near_features(features, info, near, place, tag, pointer, hit, cell, block):
    """Fill the five features that every near component has after its match."""
    at = near * NEAR_INFO_FIELDS
    distance = distance_bucket(place - pointer) if pointer >= 0 else UNKNOWN_DISTANCE
    features[1] = NEAR_DISTANCE + block * DISTANCES + distance
    features[2] = NEAR_LIKENESS + info[at + NEAR_SIMILARITY] * 5 + cell
    features[3] = NEAR_PLACE + info[at + NEAR_RANK] * 5 + cell
    features[4] = NEAR_SLOT + (tag >> 8) * 5 + cell
    features[5] = NEAR_HITS + hit_bucket(hit) * 5 + cell


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
def add_near_components(
    text,
    begin,
    n,
    near_text,
    chain,
    heads,
    mask,
    tags,
    info,
    pointers,
    hits,
    tokens,
    places,
    matches,
    features,
):
    """Components where the last token occurs in a near answer; returns their number."""
    count, visits, last = 0, 0, text[n - 1]
    i = heads[bucket_of(last, mask)]
    while i >= 0 and count < MAX_NEAR_COMPONENTS and visits < MAX_VISITS:
        visits += 1
        if near_text[i] == last and near_text[i + 1] != END:
            match, second = near_match(near_text, text, begin, n, i)
            tag = tags[i + 1]
            near = tag & 255
            bucket = match_bucket(match)
            tokens[count], places[count], matches[count] = (
                near_text[i + 1],
                i + 1,
                match,
            )
            features[count, 0] = NEAR_MATCH + bucket * SECOND_MATCHES + second_match_bucket(second)
            near_features(
                features[count],
                info,
                near,
                i + 1,
                tag,
                pointers[near],
                hits[near],
                coarse_match_bucket(match),
                bucket,
            )
            count += 1
        i = chain[i]
    return count


@compiled
def add_skipped_components(
    text,
    begin,
    n,
    near_text,
    chain,
    heads,
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
):
    """Components where all but the last token match: it replaces one of theirs, or was put in."""
    most, visits = count + MAX_SKIPPED, 0
    if n - 2 < begin:
        return count
    last, key = text[n - 1], text[n - 2]
    i = heads[bucket_of(key, mask)]
    while i >= 0 and count < most and visits < MAX_VISITS:
        visits += 1
        if near_text[i] == key and near_text[i + 1] != END and near_text[i + 1] != last:
            match = 1
            while (
                match < 16
                and n - 2 - match >= begin
                and near_text[i - match] == text[n - 2 - match]
            ):
                if near_text[i - match] == BOS:
                    match = 16
                    break
                match += 1
            if match >= 2 or key == BOS:
                for kind in range(2):
                    place = i + 2 - kind
                    if near_text[place] == END:
                        continue
                    tag = tags[place]
                    near = tag & 255
                    tokens[count], places[count], matches[count] = (
                        near_text[place],
                        place,
                        0,
                    )
                    features[count, 0] = (
                        NEAR_SKIPPED + kind * SECOND_MATCHES + second_match_bucket(match)
                    )
                    near_features(
                        features[count],
                        info,
                        near,
                        place,
                        tag,
                        pointers[near],
                        hits[near],
                        0,
                        10 + kind,
                    )
                    count += 1
        i = chain[i]
    return count


@compiled
def add_takeovers(
    near_text,
    near_length,
    tags,
    info,
    near_count,
    pointers,
    hits,
    tokens,
    places,
    matches,
    features,
    count,
):
    """Components for the first tokens of near answers of clauses that have not had their turn.

    The fewer tokens the leading near answer has left, the likelier another clause's takes over.
    """
    leader = 0
    for near in range(near_count):
        if hits[near] > hits[leader]:
            leader = near
    left = 0
    at = max(pointers[leader], 0)
    while left < 4 and at + left < near_length and near_text[at + left] != END:
        left += 1
    nearness = 0 if left <= 1 else (1 if left == 2 else (2 if left == 3 else 3))
    clause = info[leader * NEAR_INFO_FIELDS + NEAR_CLAUSE]
    for near in range(near_count):
        at = near * NEAR_INFO_FIELDS
        if info[at + NEAR_CLAUSE] == clause or info[at + NEAR_RANK] > 1:
            continue
        place = info[at + NEAR_START] + 1
        tag = tags[place]
        tokens[count], places[count], matches[count] = near_text[place], place, 0
        features[count, 0] = NEAR_TAKEOVER + nearness * HITS + hit_bucket(hits[leader])
        near_features(features[count], info, near, place, tag, pointers[near], hits[near], 0, 11)
        count += 1
    return count
