# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Postings: which prompts have which hashed tokens, as chains that compiled code follows.

A posting is a row of a table: a bucket (a hashed token) that the answer in a place has. It is in
two chains: that of its bucket, the latest answer first, and that of its answer. Postings that are
free form a chain as well.
"""

import numba
import numpy as np

BUCKET_BITS = 13
BUCKETS = 1 << BUCKET_BITS
END = -1
BUCKET, PLACE, OLDER, NEWER, SIBLING, POSTING_FIELDS = range(6)
LATEST = 1024
MAX_VISITS = 4096
MIN_LIKENESS = 0.05

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def buckets_of(tokens):
    """int32 [n], ascending: the buckets of int32 tokens [p], each once."""
    hashed = np.empty(tokens.shape[0], np.int32)
    for i in range(tokens.shape[0]):
        product = (np.uint64(np.uint32(tokens[i])) * np.uint64(2654435761)) & np.uint64(0xFFFFFFFF)
        hashed[i] = product >> np.uint64(32 - BUCKET_BITS)
    return np.unique(hashed)


@_compiled
def add_free(postings, first, free):
    """Put the postings from `first` on into the free chain; returns where that begins."""
    for posting in range(postings.shape[0] - 1, first - 1, -1):
        postings[posting, SIBLING] = free
        free = posting
    return free


@_compiled
def link(postings, heads, frequency, buckets, place, free):
    """Add an answer's buckets. Returns its first posting and the first that is still free."""
    first = END
    for bucket in buckets:
        posting, latest = free, heads[bucket]
        free = postings[posting, SIBLING]
        postings[posting, BUCKET] = bucket
        postings[posting, PLACE] = place
        postings[posting, OLDER] = latest
        postings[posting, NEWER] = END
        postings[posting, SIBLING] = first
        if latest != END:
            postings[latest, NEWER] = posting
        heads[bucket] = first = posting
        frequency[bucket] += 1
    return first, free


@_compiled
def unlink(postings, heads, frequency, first, free):
    """Take an answer's postings out. Returns the first free posting and how many they were."""
    posting, count = first, 0
    while posting != END:
        following = postings[posting, SIBLING]
        bucket = postings[posting, BUCKET]
        older, newer = postings[posting, OLDER], postings[posting, NEWER]
        if newer == END:
            heads[bucket] = older
        else:
            postings[newer, OLDER] = older
        if older != END:
            postings[older, NEWER] = newer
        frequency[bucket] -= 1
        postings[posting, SIBLING] = free
        free = posting
        posting = following
        count += 1
    return free, count


@_compiled
def weight_of(frequency, num_answers):
    """Squared weight of a bucket: what all answers have counts for next to nothing."""
    return np.square(np.log((num_answers + 1.0) / max(frequency, 1)))


@_compiled
def most_alike(postings, heads, frequency, firsts, breadths, scores, buckets, num_answers, count):
    """The `count` answers most like a prompt with these buckets, among those that share its rarest.

    firsts, breadths, scores [places]: an answer's first posting, the root of its number of buckets,
    and zeros, which they are again at the end. Returns places int32 [n] and cosines [n], the best
    first.
    """
    weights = np.empty(buckets.shape[0])
    weight_in_query = np.zeros(BUCKETS)
    for i, bucket in enumerate(buckets):
        weights[i] = weight_in_query[bucket] = weight_of(frequency[bucket], num_answers)
    seen = np.empty(MAX_VISITS, np.int32)
    num_seen = visits = 0
    for i in np.argsort(-weights):
        held = min(frequency[buckets[i]], LATEST)
        if visits + held > MAX_VISITS:
            break
        visits += held
        posting = heads[buckets[i]]
        for _ in range(held):
            place = postings[posting, PLACE]
            if scores[place] == 0.0:
                seen[num_seen] = place
                num_seen += 1
            scores[place] += weights[i]
            posting = postings[posting, OLDER]
    # Their lengths need every weight; how many buckets they have is near enough here.
    rough = np.empty(num_seen)
    for k in range(num_seen):
        rough[k] = scores[seen[k]] / breadths[seen[k]]
        scores[seen[k]] = 0.0
    kept = min(num_seen, 2 * count)
    least = np.partition(rough, num_seen - kept)[num_seen - kept] if kept else 0.0
    places, cosines = np.empty(kept, np.int32), np.empty(kept)
    query_weight, number = weights.sum(), 0
    for k in range(num_seen):
        if rough[k] < least or number == kept:
            continue
        shared = whole = 0.0
        posting = firsts[seen[k]]
        while posting != END:
            bucket = postings[posting, BUCKET]
            weight = weight_in_query[bucket]
            if weight > 0.0:
                shared += weight
            else:
                weight = weight_of(frequency[bucket], num_answers)
            whole += weight
            posting = postings[posting, SIBLING]
        cosine = shared / np.sqrt(max(whole * query_weight, 1e-12))
        if cosine >= MIN_LIKENESS:
            places[number], cosines[number] = seen[k], cosine
            number += 1
    best = np.argsort(-cosines[:number])[:count]
    return places[best], cosines[best]
