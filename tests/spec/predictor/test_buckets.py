"""Bucket functions against their tables."""

from reprise.spec.predictor import buckets


def test_tables() -> None:
    counts = [1, 2, 3, 4, 5, 8, 9, 16, 17, 10**6]
    assert [buckets.count_bucket(n) for n in counts] == [0, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    matches = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 20, 21, 99]
    expected = [0, 1, 2, 3, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9]
    assert [buckets.match_bucket(n) for n in matches] == expected
    distances = [0, 1, 2, 3, 8, 9, 32, 33, -1, -2, -3, -8, -9, -32, -33]
    expected = [0, 1, 1, 3, 3, 5, 5, 7, 2, 2, 4, 4, 6, 6, 8]
    assert [buckets.distance_bucket(n) for n in distances] == expected
    cosines = [-1.0, 0.39, 0.4, 0.55, 0.79, 0.8, 0.9, 0.97, 1.0]
    expected = [0, 0, 1, 2, 4, 5, 6, 7, 7]
    assert [buckets.similarity_bucket(s) for s in cosines] == expected
    assert [buckets.share_bucket(n, 20) for n in (0, 1, 5, 15, 16, 20)] == [0, 1, 2, 2, 3, 3]


def test_ranges() -> None:
    assert {buckets.hit_bucket(n / 10) for n in range(101)} == set(range(buckets.HITS))
    assert {buckets.rank_bucket(n) for n in range(32)} == set(range(buckets.RANKS))
    assert {buckets.recency_bucket(n) for n in range(5000)} == set(range(buckets.RECENCIES))
    coarse = {buckets.coarse_match_bucket(n) for n in range(40)}
    second = {buckets.second_match_bucket(n) for n in range(9)}
    assert coarse == set(range(buckets.COARSE_MATCHES))
    assert second == set(range(buckets.SECOND_MATCHES))
