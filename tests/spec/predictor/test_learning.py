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
    NUM_CHOICE,
    NUM_MIXTURE,
)
from reprise.spec.predictor.learning import (
    CHOICE_RATE,
    HASHED_RATE,
    MIXTURE_RATE,
    NEGLIGIBLE,
    learn_choice,
    learn_mixture,
)
from reprise.spec.predictor.prediction_trace import PredictionTrace, make_trace
from reprise.spec.runtime.layout import MAX_CANDIDATES, PREDICTED


def choice_rate(feature: int) -> float:
    """Hashed features learn faster."""
    return HASHED_RATE if feature >= HASHED_TOKEN else CHOICE_RATE


def mixture_rate(feature: int) -> float:
    """All alike."""
    del feature
    return MIXTURE_RATE


Steps = list[tuple[int, float]]  # (feature, gradient), in order
Rate = Callable[[int], float]


def apply(table: np.ndarray, squares: np.ndarray, steps: Steps, rate: Rate) -> None:
    """Adagrad, in position."""
    for feature, gradient in steps:
        squares[feature] += gradient**2
        table[feature] += rate(feature) * gradient / math.sqrt(squares[feature])


def adagrad(table: np.ndarray, steps: Steps, rate: Rate) -> np.ndarray:
    table, squares = table.astype(np.float64), np.full(len(table), FIRST_SQUARE)
    apply(table, squares, steps, rate)
    return table


def test_the_mixture_learns_the_posterior_minus_the_prior(evidence: Callable[..., Any]) -> None:
    trace = make_trace(1, 2)
    tokens, features = evidence(9)
    weights = np.random.default_rng(2).dirichlet(np.ones(10))
    trace.evidence_count[0, 1] = 9
    trace.evidence_token[0, 1] = tokens
    trace.evidence_feature[0, 1] = features
    trace.evidence_weight[0, 1, :9] = weights[:9]
    trace.escape_weight[0, 1] = weights[9]
    trace.escape_feature[0, 1, :3] = [ESCAPE_NEAR, ESCAPE_CONTEXT, ESCAPE_CORPUS]
    token = int(tokens[4])
    prob = sum(weights[i] for i in range(9) if tokens[i] == token)
    steps = []
    for i in range(9):
        gradient = (weights[i] / prob if tokens[i] == token else 0.0) - weights[i]
        steps += [(f, gradient) for f in features[i].tolist() if f]
    steps += [(f, -weights[9]) for f in (ESCAPE_NEAR, ESCAPE_CONTEXT, ESCAPE_CORPUS)]
    table = np.zeros(NUM_MIXTURE, np.float32)
    squares = np.full(NUM_MIXTURE, FIRST_SQUARE, np.float32)
    expected = adagrad(table, steps, mixture_rate)
    learn_mixture(trace, 0, 1, token, table, squares)
    assert np.abs(table - expected).max() < 1e-3


@pytest.mark.parametrize("token", [11, 99])
def test_choice_learns_what_came_minus_its_probability(token: int) -> None:
    trace = make_trace(1, 1)
    random = np.random.default_rng(3)
    probs = random.dirichlet(np.ones(4))
    trace.candidate_count[0, 0] = 3
    trace.candidate_token[0, 0, :3] = [10, 11, 12]
    trace.candidate_prob[0, 0, :3] = probs[:3]
    trace.candidate_prob[0, 0, MAX_CANDIDATES] = probs[3]
    trace.candidate_feature_count[0, 0, :3] = 7
    trace.candidate_feature[0, 0, :3, :7] = random.integers(1, 400, (3, 7))
    trace.candidate_feature[0, 0, :3, 6] = [HASHED_TOKEN, HASHED_TOKEN - 1, HASHED_PAIR]
    trace.candidate_fraction[0, 0, :3] = 0.25
    trace.escape_feature[0, 0, 3:7] = [500, 501, 502, 503]
    trace.escape_fraction[0, 0] = 0.5
    steps = []
    for rank in range(3):
        gradient = float(trace.candidate_token[0, 0, rank] == token) - probs[rank]
        shares = [0.75, 0.25, 0.75, 0.25, 1.0, 1.0, 1.0]
        own = trace.candidate_feature[0, 0, rank, :7].tolist()
        steps += [(f, gradient * share) for f, share in zip(own, shares, strict=True)]
    gradient = float(token == 99) - probs[3]
    steps += [(500 + k, gradient * share) for k, share in enumerate((0.5, 0.5, 1.0, 1.0))]
    table = np.zeros(NUM_CHOICE, np.float32)
    squares = np.full(NUM_CHOICE, FIRST_SQUARE, np.float32)
    expected = adagrad(table, steps, choice_rate)
    learn_choice(trace, 0, 0, token, table, squares)
    assert np.abs(table - expected).max() < 1e-3


def mixture_steps(trace: dict[str, Any], token: int) -> Steps:
    """Share of the probability of what came, minus share of all, for each evidence's features."""
    count = int(trace["evidence_count"])
    tokens, weights = trace["evidence_token"][:count], trace["evidence_weight"][:count]
    prob = float(weights[tokens == token].sum(dtype=np.float64))
    steps = []
    for i in range(count):
        share = float(weights[i]) / prob if tokens[i] == token else 0.0
        gradient = share - float(weights[i])
        if abs(gradient) > NEGLIGIBLE:
            steps += [(f, gradient) for f in trace["evidence_feature"][i].tolist() if f]
    gradient = (prob == 0.0) - float(trace["escape_weight"])
    return steps + [(f, gradient) for f in trace["escape_feature"][:3].tolist()]


def choice_steps(trace: dict[str, Any], token: int) -> Steps:
    """Whether a candidate came, minus its probability, shared by the bins of that probability."""
    count = int(trace["candidate_count"])
    tokens = trace["candidate_token"][:count].tolist()
    steps: Steps = []
    for rank in range(count):
        gradient = (tokens[rank] == token) - float(trace["candidate_prob"][rank])
        if abs(gradient) <= NEGLIGIBLE:
            continue
        fraction = float(trace["candidate_fraction"][rank])
        own = trace["candidate_feature"][rank, : trace["candidate_feature_count"][rank]].tolist()
        shares = [1 - fraction, fraction, 1 - fraction, fraction, *[1.0] * (len(own) - 4)]
        steps += [(f, gradient * share) for f, share in zip(own, shares, strict=True)]
    gradient = (token not in tokens) - float(trace["candidate_prob"][MAX_CANDIDATES])
    fraction = float(trace["escape_fraction"])
    shares = [1 - fraction, fraction, 1.0, 1.0]
    escape = trace["escape_feature"][3:7].tolist()
    return steps + [(f, gradient * share) for f, share in zip(escape, shares, strict=True)]


def trace_of(position: dict[str, Any]) -> PredictionTrace:
    """A trace of one position."""
    trace = make_trace(1, 1)
    for name, field in trace._asdict().items():
        field[0, 0] = position[name]
    return trace


def test_updates_from_real_predictions(predictions: Sequence[Any]) -> None:
    random, changed = np.random.default_rng(7), 0
    for prediction in predictions[::5]:
        trace = trace_of(prediction.trace)
        candidates = prediction.trace["candidate_token"][: prediction.trace["candidate_count"]]
        token = int(random.choice([*candidates.tolist(), 10_000]))
        for name, learn, steps_of, rate in (
            ("mixture", learn_mixture, mixture_steps, mixture_rate),
            ("choice", learn_choice, choice_steps, choice_rate),
        ):
            before = prediction.weights[name], prediction.weights[f"{name}_squares"]
            found = [table.copy() for table in before]
            expected = [table.astype(np.float64) for table in before]
            learn(trace, 0, 0, token, *found)
            apply(*expected, steps_of(prediction.trace, token), rate)
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
        predicted = int(provider._table.rows[request.req_idx, PREDICTED])
        trace = {
            name: f[request.req_idx].copy() for name, f in provider._table.trace._asdict().items()
        }
        weights = {n: t.astype(np.float64) for n, t in provider._learned.tables._asdict().items()}
        accepted = int(random.integers(0, min(len(draft), predicted - 1) + 1))
        emitted = [*draft[:accepted], int(random.integers(0, 9))]
        provider.observe("r", emitted)
        for position, token in enumerate(emitted):
            here = {name: field[position] for name, field in trace.items()}
            steps = mixture_steps(here, token)
            apply(weights["mixture"], weights["mixture_squares"], steps, mixture_rate)
            steps = choice_steps(here, token)
            apply(weights["choice"], weights["choice_squares"], steps, choice_rate)
        for name, table in provider._learned.tables._asdict().items():
            assert np.allclose(table, weights[name], rtol=1e-5, atol=1e-5)
        learned += len(emitted)
    assert learned > 100
    assert provider.stats().errors == 0
