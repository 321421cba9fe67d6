"""Attention, alignment and learning against plain loops."""

import math

import numpy as np
import pytest

from reprise.spec.alignment import DECAY, advance_alignment
from reprise.spec.attention import attend, gather_candidates
from reprise.spec.features import (
    ESCAPE_CONTEXT,
    ESCAPE_CORPUS,
    ESCAPE_NEAR,
    FIRST_SQUARE,
    NUM_ATTENTION,
    NUM_CHOICE,
)
from reprise.spec.layout import (
    COMPONENT_FEATURES,
    MAX_CANDIDATES,
    MAX_COMPONENTS,
    MAX_NEAR,
)
from reprise.spec.learning import ATTENTION_RATE, CHOICE_RATE, learn_attention, learn_choice
from reprise.spec.scratch import make_scratch
from reprise.spec.trail import make_trail


def components(count: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(count)
    tokens = np.zeros(MAX_COMPONENTS, np.int32)
    tokens[:count] = random.integers(0, 5, count)
    features = np.zeros((MAX_COMPONENTS, COMPONENT_FEATURES), np.int16)
    features[:count, :4] = random.integers(1, 200, (count, 4))
    return tokens, features


@pytest.mark.parametrize("count", [0, 1, 17, MAX_COMPONENTS])
def test_attention_is_a_softmax_over_components(count: int) -> None:
    tokens, features = components(count)
    table = np.random.default_rng(1).normal(size=NUM_ATTENTION).astype(np.float32)
    table[0] = 0.0
    scratch = make_scratch()
    weights, escape_features = np.zeros(MAX_COMPONENTS, np.float32), np.zeros(8, np.int16)
    number = gather_candidates(tokens, count, scratch)
    escape = attend(features, count, 20, 3, 2, table, escape_features, weights, scratch)
    chosen = [ESCAPE_NEAR + 10, ESCAPE_CONTEXT + 3, ESCAPE_CORPUS + 2]
    assert escape_features[:3].tolist() == chosen
    scores = [float(table[features[i]].sum(dtype=np.float64)) for i in range(count)]
    none = float(table[chosen].sum(dtype=np.float64))
    total = math.exp(none) + sum(map(math.exp, scores))
    assert escape == pytest.approx(math.exp(none) / total, rel=1e-4)
    assert number == len(set(tokens[:count].tolist()))
    for candidate in range(number):
        token = scratch.token[candidate]
        own = [i for i in range(count) if tokens[i] == token]
        expected = sum(math.exp(scores[i]) for i in own) / total
        assert scratch.chance[candidate] == pytest.approx(expected, rel=1e-3)
        assert scratch.best[candidate] in own
        assert scores[scratch.best[candidate]] == pytest.approx(max(scores[i] for i in own))


def adagrad(table: np.ndarray, steps: list[tuple[int, float]], rate: float) -> np.ndarray:
    table, squares = table.astype(np.float64), np.full(len(table), FIRST_SQUARE)
    for feature, gradient in steps:
        squares[feature] += gradient**2
        table[feature] += rate * gradient / math.sqrt(squares[feature])
    return table


def test_attention_learns_the_posterior_minus_the_prior() -> None:
    trail = make_trail(1, 2)
    tokens, features = components(9)
    weights = np.random.default_rng(2).dirichlet(np.ones(10))
    trail.component_count[0, 1] = 9
    trail.component_token[0, 1] = tokens
    trail.component_feature[0, 1] = features
    trail.component_weight[0, 1, :9] = weights[:9]
    trail.escape_weight[0, 1] = weights[9]
    trail.escape_feature[0, 1, :3] = [ESCAPE_NEAR, ESCAPE_CONTEXT, ESCAPE_CORPUS]
    token = int(tokens[4])
    chance = sum(weights[i] for i in range(9) if tokens[i] == token)
    steps = []
    for i in range(9):
        gradient = (weights[i] / chance if tokens[i] == token else 0.0) - weights[i]
        steps += [(f, gradient) for f in features[i].tolist() if f]
    steps += [(f, -weights[9]) for f in (ESCAPE_NEAR, ESCAPE_CONTEXT, ESCAPE_CORPUS)]
    table = np.zeros(NUM_ATTENTION, np.float32)
    squares = np.full(NUM_ATTENTION, FIRST_SQUARE, np.float32)
    expected = adagrad(table, steps, ATTENTION_RATE)
    learn_attention(trail, 0, 1, token, table, squares)
    assert np.abs(table - expected).max() < 1e-3


@pytest.mark.parametrize("token", [11, 99])
def test_choice_learns_what_came_minus_its_chance(token: int) -> None:
    trail = make_trail(1, 1)
    random = np.random.default_rng(3)
    chances = random.dirichlet(np.ones(4))
    trail.candidate_count[0, 0] = 3
    trail.candidate_token[0, 0, :3] = [10, 11, 12]
    trail.candidate_chance[0, 0, :3] = chances[:3]
    trail.candidate_chance[0, 0, MAX_CANDIDATES] = chances[3]
    trail.candidate_feature_count[0, 0, :3] = 7
    trail.candidate_feature[0, 0, :3, :7] = random.integers(1, 400, (3, 7))
    trail.candidate_fraction[0, 0, :3] = 0.25
    trail.escape_feature[0, 0, 3:7] = [500, 501, 502, 503]
    trail.escape_fraction[0, 0] = 0.5
    steps = []
    for place in range(3):
        gradient = float(trail.candidate_token[0, 0, place] == token) - chances[place]
        shares = [0.75, 0.25, 0.75, 0.25, 1.0, 1.0, 1.0]
        own = trail.candidate_feature[0, 0, place, :7].tolist()
        steps += [(f, gradient * share) for f, share in zip(own, shares, strict=True)]
    gradient = float(token == 99) - chances[3]
    steps += [(500 + k, gradient * share) for k, share in enumerate((0.5, 0.5, 1.0, 1.0))]
    table = np.zeros(NUM_CHOICE, np.float32)
    squares = np.full(NUM_CHOICE, FIRST_SQUARE, np.float32)
    expected = adagrad(table, steps, CHOICE_RATE)
    learn_choice(trail, 0, 0, token, table, squares)
    assert np.abs(table - expected).max() < 1e-3


def test_alignment_jumps_to_a_match_or_moves_on() -> None:
    scratch = make_scratch()
    tags = np.repeat(np.arange(3, dtype=np.int32), 20)
    tokens = np.array([5, 5, 5, 6], np.int32)
    places = np.array([7, 15, 22, 41], np.int32)
    matches = np.array([1, 6, 2, 9], np.int32)
    pointers, hits = np.zeros(MAX_NEAR, np.int32), np.ones(MAX_NEAR, np.float32)
    pointers[:3] = [6, 22, -1]
    after, after_hits = np.zeros_like(pointers), np.zeros_like(hits)
    advance_alignment(
        tokens, places, matches, tags, 4, 5, 3, pointers, hits, after, after_hits, scratch
    )
    assert after[:3].tolist() == [16, 23, -1]
    expected = [DECAY + 1.0, DECAY + 1.0, DECAY]
    assert after_hits[:3].tolist() == pytest.approx(expected)
    assert not after_hits[3:].any()
