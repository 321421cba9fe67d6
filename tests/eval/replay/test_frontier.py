"""Frontiers keep what no other setting beats, and every method's knob is turned."""

from reprise.eval.replay.frontier import (
    COSTS,
    NGRAM_LENGTHS,
    Point,
    num_frontier_replays,
    upper_envelope,
)


def test_upper_envelope() -> None:
    points = [Point(2, 1.5), Point(1, 1.4), Point(3, 1.45), Point(2, 1.6), Point(4, 1.7)]
    assert upper_envelope(points) == [Point(1, 1.4), Point(2, 1.6), Point(4, 1.7)]
    assert upper_envelope([]) == []


def test_number_of_replays() -> None:
    assert num_frontier_replays(["none", "semantic-cache"]) == 0
    assert num_frontier_replays(["suffix", "suffix-long", "suffix-best"]) == 18
    assert num_frontier_replays(["ngram", "reprise"]) == len(NGRAM_LENGTHS) + len(COSTS)
