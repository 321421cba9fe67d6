"""Draft look-up: what is taken, worked out by hand, and the arguments that are refused."""

from __future__ import annotations

import doctest

import pytest
import torch

from reprise.kernels import lookup
from reprise.kernels.lookup import MAX_MATCH, lookup_drafts


def one_request(tail, answers, wanted=3, **more):
    """Look up one request with lists for arguments: its draft without padding, and its match."""
    bounds = [0]
    for answer in answers:
        bounds.append(bounds[-1] + len(answer))
    drafts, match = lookup_drafts(
        torch.tensor([tail], dtype=torch.int32),
        torch.tensor([token for answer in answers for token in answer], dtype=torch.int32),
        torch.tensor(bounds),
        torch.tensor([0, len(answers)], dtype=torch.int32),
        torch.tensor([wanted], dtype=torch.int32),
        max_draft=5,
        **more,
    )
    return [token for token in drafts[0].tolist() if token >= 0], int(match)


def test_the_longest_match_wins_over_similarity():
    assert one_request([1, 2, 3], [[9, 3, 7, 7], [2, 3, 8, 8]]) == ([8, 8], 2)


def test_among_equals_the_nearest_answer_and_in_it_the_last_place():
    assert one_request([5], [[5, 1, 5, 2], [5, 3]]) == ([2], 1)


def test_a_match_does_not_reach_across_the_border_of_answers():
    assert one_request([1, 2], [[0, 1], [2, 7]]) == ([7], 1)


def test_the_end_of_an_answer_is_followed_by_nothing():
    assert one_request([4], [[1, 4]]) == ([], 0)
    assert one_request([4], [[], [3], [4, 6]]) == ([6], 1)


def test_wanted_min_match_and_padding():
    assert one_request([1, 2], [[1, 2, 3, 4, 5]], wanted=0) == ([], 0)
    assert one_request([1, 2], [[1, 2, 3, 4, 5]], wanted=2) == ([3, 4], 2)
    assert one_request([1, 2], [[1, 2, 3, 4, 5, 6, 7, 8, 9]], wanted=9)[0] == [3, 4, 5, 6, 7]
    assert one_request([1, 2], [[1, 2, 3]], min_match=3) == ([], 0)
    assert one_request([-1, -1, 2], [[-1, 2, 3]]) == ([3], 1)
    assert one_request([-1], [[1, 2]]) == ([], 0)
    assert one_request([1], []) == ([], 0)


def test_no_match_is_longer_than_the_most_that_is_looked_for():
    tail = list(range(40))
    assert one_request(tail, [[*tail[-20:], 77], [*tail, 88]]) == ([77], MAX_MATCH)


def test_the_example_in_the_docstring_runs():
    assert doctest.testmod(lookup) == (0, 3)


def test_arguments_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"min_match in 1\.\.16, came 1 requests, max_draft 5"):
        one_request([1], [[1, 2]], min_match=17)
    with pytest.raises(ValueError, match="expected backend"):
        one_request([1], [[1, 2]], backend="cuda")
    with pytest.raises(ValueError, match=r"expected request_offsets \[2\] of torch.int32"):
        lookup_drafts(
            torch.zeros(1, 4, dtype=torch.int32),
            torch.zeros(4, dtype=torch.int32),
            torch.tensor([0, 4]),
            torch.tensor([0]).int(),
            torch.ones(1, dtype=torch.int32),
            max_draft=2,
        )
