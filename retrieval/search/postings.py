# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Postings: which prompts have which hashed tokens, as chains that compiled code follows.

A posting is a row of a table: a bucket (a hashed token) that the answer in a place has. It is in
two chains: that of its bucket, the latest answer first, and that of its answer. Postings that are
free form a chain as well.

Where a bucket's chain begins says a row of another table, `heads`. That is a hash table as small as
its namespace: it grows with the buckets that are in use, up to a row for each there may be, from
where on a bucket's row is its number.
"""

import numba
import numpy as np

BUCKET_BITS = 13
BUCKETS = 1 << BUCKET_BITS
END = -1
BUCKET, PLACE, OLDER, NEWER, SIBLING, POSTING_FIELDS = range(6)
OWNER, LATEST_POSTING, FREQUENCY, HEAD_FIELDS = range(4)
LATEST = 1024
MAX_VISITS = 4096
MIN_LIKENESS = 0.05

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compiled
def buckets_of(tokens):
    """Return int32 [n], ascending: the buckets of int32 tokens [p], each once."""
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
def row_of(heads, bucket):
    """Return the row of a bucket in `heads`; one without owner if it has none."""
    last = heads.shape[0] - 1
    row = bucket & last
    while heads[row, OWNER] != bucket and heads[row, OWNER] != END:
        row = (row + 1) & last
    return row


@_compiled
def empty_heads(size):
    """Return heads int32 [size, HEAD_FIELDS] that have no owners; the size is a power of two."""
    heads = np.full((size, HEAD_FIELDS), END, np.int32)
    heads[:, FREQUENCY] = 0
    return heads


@_compiled
def grown_heads(heads, num_buckets):
    """Return larger heads with room for so many more buckets, and the number of their owners.

    Buckets that no answer has any more are left out.
    """
    num_owners = 0
    for row in range(heads.shape[0]):
        num_owners += heads[row, FREQUENCY] > 0
    size = heads.shape[0]
    while size < BUCKETS and 4 * (num_owners + num_buckets) > 3 * size:
        size *= 2
    grown = empty_heads(size)
    for row in range(heads.shape[0]):
        if heads[row, FREQUENCY] > 0:
            grown[row_of(grown, heads[row, OWNER])] = heads[row]
    return grown, num_owners


@_compiled
def link(postings, heads, buckets, place, free):
    """Add an answer's buckets, for which there is room.

    Returns its first posting, the first that is still free, and how many buckets are new.
    """
    first, num_new = END, 0
    for bucket in buckets:
        row = row_of(heads, bucket)
        if heads[row, OWNER] == END:
            heads[row, OWNER] = bucket
            num_new += 1
        posting, latest = free, heads[row, LATEST_POSTING]
        free = postings[posting, SIBLING]
        postings[posting, BUCKET] = bucket
        postings[posting, PLACE] = place
        postings[posting, OLDER] = latest
        postings[posting, NEWER] = END
        postings[posting, SIBLING] = first
        if latest != END:
            postings[latest, NEWER] = posting
        heads[row, LATEST_POSTING] = first = posting
        heads[row, FREQUENCY] += 1
    return first, free, num_new


@_compiled
def unlink(postings, heads, first, free):
    """Take an answer's postings out. Returns the first free posting and how many they were."""
    posting, count = first, 0
    while posting != END:
        following = postings[posting, SIBLING]
        row = row_of(heads, postings[posting, BUCKET])
        older, newer = postings[posting, OLDER], postings[posting, NEWER]
        if newer == END:
            heads[row, LATEST_POSTING] = older
        else:
            postings[newer, OLDER] = older
        if older != END:
            postings[older, NEWER] = newer
        heads[row, FREQUENCY] -= 1
        postings[posting, SIBLING] = free
        free = posting
        posting = following
        count += 1
    return free, count


@_compiled
def weight_of(frequency, num_answers):
    """Return the squared weight of a bucket: what all answers have counts for next to nothing."""
    return np.square(np.log((num_answers + 1.0) / max(frequency, 1)))


@_compiled
def most_alike(postings, heads, firsts, breadths, scores, buckets, num_answers, count):
    """Return the `count` answers most like a prompt with these buckets, among those that share its
    rarest.

    firsts, breadths, scores [places]: an answer's first posting, the root of its number of buckets,
    and zeros, which they are again at the end. Returns places int32 [n] and cosines [n], the best
    first.
    """
    weights = np.empty(buckets.shape[0])
    rows = np.empty(buckets.shape[0], np.int32)
    weight_in_query = np.zeros(BUCKETS)
    for i, bucket in enumerate(buckets):
        rows[i] = row_of(heads, bucket)
        weights[i] = weight_of(heads[rows[i], FREQUENCY], num_answers)
        weight_in_query[bucket] = weights[i]
    seen = np.empty(MAX_VISITS, np.int32)
    num_seen = visits = 0
    for i in np.argsort(-weights):
        held = min(heads[rows[i], FREQUENCY], LATEST)
        if visits + held > MAX_VISITS:
            break
        visits += held
        posting = heads[rows[i], LATEST_POSTING]
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
    min_rough = np.partition(rough, num_seen - kept)[num_seen - kept] if kept else 0.0
    places, cosines = np.empty(kept, np.int32), np.empty(kept)
    query_weight, number = weights.sum(), 0
    for k in range(num_seen):
        if rough[k] < min_rough or number == kept:
            continue
        shared = whole = 0.0
        posting = firsts[seen[k]]
        while posting != END:
            bucket = postings[posting, BUCKET]
            weight = weight_in_query[bucket]
            if weight > 0.0:
                shared += weight
            else:
                weight = weight_of(heads[row_of(heads, bucket), FREQUENCY], num_answers)
            whole += weight
            posting = postings[posting, SIBLING]
        cosine = shared / np.sqrt(max(whole * query_weight, 1e-12))
        if cosine >= MIN_LIKENESS:
            places[number], cosines[number] = seen[k], cosine
            number += 1
    best = np.argsort(-cosines[:number])[:count]
    return places[best], cosines[best]
