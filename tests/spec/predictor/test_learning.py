"""Both learning updates against Adagrad written out."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.batching.request import Request
from reprise.spec.predictor.features import (
    ESCAPE_CONTEXT,
    ESCAPE_CORPUS,
    ESCAPE_NEAR,
    FIRST_SQUARE,
    HASHED_PAIR,
    HASHED_TOKEN,
    NUM_ATTENTION,
    NUM_CHOICE,
)
from reprise.spec.predictor.learning import (
    ATTENTION_RATE,
    CHOICE_RATE,
    HASHED_RATE,
    NEGLIGIBLE,
    learn_attention,
    learn_choice,
)
from reprise.spec.predictor.trail import Trail, make_trail
from reprise.spec.runtime.layout import MAX_CANDIDATES, PREDICTED


def choice_rate(feature: int) -> float:
    """Hashed features learn faster."""
    return HASHED_RATE if feature >= HASHED_TOKEN else CHOICE_RATE


def attention_rate(feature: int) -> float:
    """All alike."""
    del feature
    return ATTENTION_RATE


Steps = list[tuple[int, float]]  # (feature, gradient), in order
Rate = Callable[[int], float]


def apply(table: np.ndarray, squares: np.ndarray, steps: Steps, rate: Rate) -> None:
    """Adagrad, in place."""
    for feature, gradient in steps:
        squares[feature] += gradient**2
        table[feature] += rate(feature) * gradient / math.sqrt(squares[feature])


def adagrad(table: np.ndarray, steps: Steps, rate: Rate) -> np.ndarray:
    table, squares = table.astype(np.float64), np.full(len(table), FIRST_SQUARE)
    apply(table, squares, steps, rate)
    return table


def test_attention_learns_the_posterior_minus_the_prior(components: Callable[..., Any]) -> None:
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
    expected = adagrad(table, steps, attention_rate)
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
    trail.candidate_feature[0, 0, :3, 6] = [HASHED_TOKEN, HASHED_TOKEN - 1, HASHED_PAIR]
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
    expected = adagrad(table, steps, choice_rate)
    learn_choice(trail, 0, 0, token, table, squares)
    assert np.abs(table - expected).max() < 1e-3


def attention_steps(trail: dict[str, Any], token: int) -> Steps:
    """Share of the chance of what came, minus share of all, for each component's features."""
    count = int(trail["component_count"])
    tokens, weights = trail["component_token"][:count], trail["component_weight"][:count]
    chance = float(weights[tokens == token].sum(dtype=np.float64))
    steps = []
    for i in range(count):
        share = float(weights[i]) / chance if tokens[i] == token else 0.0
        gradient = share - float(weights[i])
        if abs(gradient) > NEGLIGIBLE:
            steps += [(f, gradient) for f in trail["component_feature"][i].tolist() if f]
    gradient = (chance == 0.0) - float(trail["escape_weight"])
    return steps + [(f, gradient) for f in trail["escape_feature"][:3].tolist()]


def choice_steps(trail: dict[str, Any], token: int) -> Steps:
    """Whether a candidate came, minus its chance; the chance's bin and the next one share it."""
    count = int(trail["candidate_count"])
    tokens = trail["candidate_token"][:count].tolist()
    steps: Steps = []
    for place in range(count):
        gradient = (tokens[place] == token) - float(trail["candidate_chance"][place])
        if abs(gradient) <= NEGLIGIBLE:
            continue
        fraction = float(trail["candidate_fraction"][place])
        own = trail["candidate_feature"][place, : trail["candidate_feature_count"][place]].tolist()
        shares = [1 - fraction, fraction, 1 - fraction, fraction, *[1.0] * (len(own) - 4)]
        steps += [(f, gradient * share) for f, share in zip(own, shares, strict=True)]
    gradient = (token not in tokens) - float(trail["candidate_chance"][MAX_CANDIDATES])
    fraction = float(trail["escape_fraction"])
    shares = [1 - fraction, fraction, 1.0, 1.0]
    escape = trail["escape_feature"][3:7].tolist()
    return steps + [(f, gradient * share) for f, share in zip(escape, shares, strict=True)]


def trail_of(position: dict[str, Any]) -> Trail:
    """A trail of one position."""
    trail = make_trail(1, 1)
    for name, field in trail._asdict().items():
        field[0, 0] = position[name]
    return trail


def test_updates_from_real_predictions(predictions: Sequence[Any]) -> None:
    random, changed = np.random.default_rng(7), 0
    for prediction in predictions[::5]:
        trail = trail_of(prediction.trail)
        candidates = prediction.trail["candidate_token"][: prediction.trail["candidate_count"]]
        token = int(random.choice([*candidates.tolist(), 10_000]))
        for name, learn, steps_of, rate in (
            ("attention", learn_attention, attention_steps, attention_rate),
            ("choice", learn_choice, choice_steps, choice_rate),
        ):
            before = prediction.weights[name], prediction.weights[f"{name}_squares"]
            found = [table.copy() for table in before]
            expected = [table.astype(np.float64) for table in before]
            learn(trail, 0, 0, token, *found)
            apply(*expected, steps_of(prediction.trail, token), rate)
            for mine, theirs in zip(found, expected, strict=True):
                assert np.allclose(mine, theirs, rtol=1e-5, atol=1e-5)
            changed += not np.array_equal(found[0], before[0])
    assert changed > len(predictions[::5])


def test_a_step_learns_from_each_emitted_token() -> None:
    random = np.random.default_rng(8)
    provider = DraftProvider(DraftConfig(verify_cost=0.0))
    block = random.integers(0, 9, 40).tolist()
    provider.start("r", block)
    learned = 0
    for _ in range(60):
        draft = provider.propose("r", limit=6)
        request = provider._live["r"]
        assert isinstance(request, Request)
        predicted = int(provider._requests[request.slot, PREDICTED])
        trail = {name: f[request.slot].copy() for name, f in provider._trail._asdict().items()}
        weights = {n: t.astype(np.float64) for n, t in provider._weights._asdict().items()}
        accepted = int(random.integers(0, min(len(draft), predicted - 1) + 1))
        emitted = [*draft[:accepted], int(random.integers(0, 9))]
        provider.observe("r", emitted)
        for position, token in enumerate(emitted):
            here = {name: field[position] for name, field in trail.items()}
            steps = attention_steps(here, token)
            apply(weights["attention"], weights["attention_squares"], steps, attention_rate)
            steps = choice_steps(here, token)
            apply(weights["choice"], weights["choice_squares"], steps, choice_rate)
        for name, table in provider._weights._asdict().items():
            assert np.allclose(table, weights[name], rtol=1e-5, atol=1e-5)
        learned += len(emitted)
    assert learned > 100
    assert provider.stats().errors == 0
