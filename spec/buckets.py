"""Buckets: small integers that stand for a count, a length or a distance in the weight tables."""

from .compiled import compiled

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


@compiled
def count_bucket(count: int) -> int:
    """0..5 for 1, 2, 3-4, 5-8, 9-16, 17+."""
    if count <= 2:
        return 0 if count <= 1 else 1
    if count <= 4:
        return 2
    if count <= 8:
        return 3
    return 4 if count <= 16 else 5


@compiled
def match_bucket(match: int) -> int:
    """0..9 for match lengths 0, 1, 2, 3, 4, 5-6, 7-8, 9-12, 13-20, 21+."""
    if match <= 4:
        return match
    if match <= 6:
        return 5
    if match <= 8:
        return 6
    if match <= 12:
        return 7
    return 8 if match <= 20 else 9


@compiled
def coarse_match_bucket(match: int) -> int:
    """0..4 for match lengths 0, 1, 2-3, 4-8, 9+."""
    if match <= 1:
        return match
    if match <= 3:
        return 2
    return 3 if match <= 8 else 4


@compiled
def second_match_bucket(match: int) -> int:
    """0..4 for the length matched beyond one substitution: 0, 1, 2-3, 4-7, 8+."""
    if match <= 1:
        return match
    if match <= 3:
        return 2
    return 3 if match <= 7 else 4


@compiled
def distance_bucket(distance: int) -> int:
    """0 on the alignment; odd buckets ahead of it, even ones behind, growing with distance."""
    if distance == 0:
        return 0
    size = distance if distance > 0 else -distance
    behind = 0 if distance > 0 else 1
    if size <= 2:
        return 1 + behind
    if size <= 8:
        return 3 + behind
    return (5 if size <= 32 else 7) + behind


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
    """0..4 for the near answer's place: 0, 1, 2-3, 4-7, 8+."""
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
    if hit < 0.3:
        return 0
    if hit < 1.0:
        return 1
    if hit < 2.0:
        return 2
    if hit < 4.0:
        return 3
    return 4 if hit < 6.5 else 5


@compiled
def recency_bucket(distance: int) -> int:
    """0..7: how many times the distance halves before it is at most 8."""
    bucket = 0
    while distance > 8 and bucket < RECENCIES - 1:
        distance >>= 1
        bucket += 1
    return bucket


@compiled
def share_bucket(count: int, total: int) -> int:
    """0..3: absent, below a quarter, below four fifths, above."""
    if count == 0:
        return 0
    if 4 * count < total:
        return 1
    return 2 if 5 * count < 4 * total else 3
