"""Buckets: small integers that stand for a count, a length or a distance in the weight tables.

Looked up or added up instead of decided step by step: a branch that goes now here, now there costs
more than all that it decides.
"""

import numpy as np
import numpy.typing as npt

from reprise.spec.runtime.compiled import compiled

COUNTS = 6
MATCHES = 10
COARSE_MATCHES = 5
SECOND_MATCHES = 5
DISTANCES = 10
UNKNOWN_DISTANCE = 9
SIMILARITIES = 8
RANKS = 5
HITS = 6
RECENCIES = 8


def buckets_from(*starts: int) -> npt.NDArray[np.int64]:
    """The bucket of each number up to the last of `starts`, at which new ones begin."""
    return np.searchsorted(starts, np.arange(starts[-1] + 1), side="right")


_COUNT_BUCKETS = buckets_from(2, 3, 5, 9, 17)
_KNOWN_BUCKETS = buckets_from(1, 2, 3, 5, 9, 17)
_MATCH_BUCKETS = buckets_from(1, 2, 3, 4, 5, 7, 9, 13, 21)
_COARSE_MATCH_BUCKETS = buckets_from(1, 2, 4, 9)
_SECOND_MATCH_BUCKETS = buckets_from(1, 2, 4, 8)
_AHEAD_BUCKETS = np.maximum(0, 2 * buckets_from(1, 3, 9, 33) - 1)
_FARTHEST = len(_AHEAD_BUCKETS) - 1
_DISTANCE_BUCKETS = np.concatenate((_AHEAD_BUCKETS[:0:-1] + 1, _AHEAD_BUCKETS))


@compiled
def count_bucket(count: int) -> int:
    """0..5 for 1, 2, 3-4, 5-8, 9-16, 17+."""
    return int(_COUNT_BUCKETS[min(count, len(_COUNT_BUCKETS) - 1)])


@compiled
def known_bucket(count: int) -> int:
    """0 for none, else 1..6: count_bucket + 1."""
    return int(_KNOWN_BUCKETS[min(count, len(_KNOWN_BUCKETS) - 1)])


@compiled
def match_bucket(match: int) -> int:
    """0..9 for match lengths 0, 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-20, 21+."""
    return int(_MATCH_BUCKETS[min(match, len(_MATCH_BUCKETS) - 1)])


@compiled
def coarse_match_bucket(match: int) -> int:
    """0..4 for match lengths 0, 1, 2-3, 4-8, 9+."""
    return int(_COARSE_MATCH_BUCKETS[min(match, len(_COARSE_MATCH_BUCKETS) - 1)])


@compiled
def second_match_bucket(match: int) -> int:
    """0..4 for the length matched beyond one substitution: 0, 1, 2-3, 4-7, 8+."""
    return int(_SECOND_MATCH_BUCKETS[min(match, len(_SECOND_MATCH_BUCKETS) - 1)])


@compiled
def distance_bucket(distance: int) -> int:
    """0 on the alignment; odd buckets ahead of it, even ones behind, growing with distance."""
    return int(_DISTANCE_BUCKETS[min(max(distance, -_FARTHEST), _FARTHEST) + _FARTHEST])


@compiled
def similarity_bucket(similarity: float) -> int:
    """0..7 for a cosine: below 0.4, four steps of 0.1, 0.8-0.9, 0.9-0.97, above."""
    if similarity < 0.4:
        return 0
    if similarity < 0.8:
        return min(4, int((similarity - 0.4) * 10.0) + 1)
    if similarity < 0.9:
        return 5
    return 6 if similarity < 0.97 else 7


@compiled
def rank_bucket(rank: int) -> int:
    """0..4 for the near answer's position: 0, 1, 2-3, 4-7, 8+."""
    if rank < 2:
        return rank
    if rank < 4:
        return 2
    return 3 if rank < 8 else 4


@compiled
def many_bucket(near_count: int) -> int:
    """0..3 for the number of a request's near answers: below 4, 12, 24, and more."""
    if near_count < 4:
        return 0
    if near_count < 12:
        return 1
    return 2 if near_count < 24 else 3


@compiled
def hit_bucket(hit: float) -> int:
    """0..5 for a near answer's decayed number of recent hits."""
    return (hit >= 0.3) + (hit >= 1.0) + (hit >= 2.0) + (hit >= 4.0) + (hit >= 6.5)


@compiled
def recency_bucket(distance: int) -> int:
    """0..7: how many times the distance halves before it is at most 8."""
    near, far = (distance > 8) + (distance > 17) + (distance > 35), distance > 71
    return near + far + (distance > 143) + (distance > 287) + (distance > 575)


@compiled
def share_bucket(count: int, total: int) -> int:
    """0..3: absent, below a quarter, below four fifths, above."""
    return (count > 0) * (1 + (4 * count >= total) + (5 * count >= 4 * total))
