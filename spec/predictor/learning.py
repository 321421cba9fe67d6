# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Learning: one Adagrad step of both weight tables for each emitted token.

    square[f] += gradient**2;  weight[f] += rate * gradient / sqrt(square[f])

(Duchi, Hazan and Singer, "Adaptive subgradient methods for online learning and stochastic
optimization", 2011.) The gradient is that of the log probability of the emitted token: what a piece
of evidence or a candidate was in hindsight, minus what it was said to be.
"""

import math

from reprise.spec.predictor.features import HASHED_TOKEN
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import EVIDENCE_FEATURES, MAX_CANDIDATES

MIXTURE_RATE = 0.05
CHOICE_RATE = 0.03
HASHED_RATE = 0.06  # of features that occur so rarely that they have to learn fast
NEGLIGIBLE = 1e-3


@compiled
def adagrad_step(table, squares, feature, gradient, rate):
    """The step for one weight."""
    squares[feature] += gradient * gradient
    table[feature] += rate * gradient / math.sqrt(squares[feature])


@compiled
def learn_mixture(trace, req_idx, position, token, table, squares):
    """Learn from `token` having come where the trace's position predicted."""
    count = trace.evidence_count[req_idx, position]
    tokens = trace.evidence_token[req_idx, position]
    weights = trace.evidence_weight[req_idx, position]
    features = trace.evidence_feature[req_idx, position]
    prob = 0.0
    for i in range(count):
        if tokens[i] == token:
            prob += weights[i]
    for i in range(count):
        gradient = -weights[i]
        if tokens[i] == token:
            gradient += weights[i] / prob
        if abs(gradient) > NEGLIGIBLE:
            for k in range(EVIDENCE_FEATURES):
                if features[i, k] > 0:
                    adagrad_step(table, squares, features[i, k], gradient, MIXTURE_RATE)
    gradient = (0.0 if prob > 0.0 else 1.0) - trace.escape_weight[req_idx, position]
    for k in range(3):
        adagrad_step(
            table,
            squares,
            trace.escape_feature[req_idx, position, k],
            gradient,
            MIXTURE_RATE,
        )


@compiled
def learn_choice(trace, req_idx, position, token, table, squares):
    """Learn from `token` having come where the trace's position predicted."""
    tokens = trace.candidate_token[req_idx, position]
    probs = trace.candidate_prob[req_idx, position]
    features = trace.candidate_feature[req_idx, position]
    found = False
    for rank in range(trace.candidate_count[req_idx, position]):
        gradient = -probs[rank]
        if tokens[rank] == token:
            gradient += 1.0
            found = True
        if abs(gradient) <= NEGLIGIBLE:
            continue
        fraction = trace.candidate_fraction[req_idx, position, rank]
        for k in range(4):
            part = gradient * (fraction if k % 2 else 1.0 - fraction)
            adagrad_step(table, squares, features[rank, k], part, CHOICE_RATE)
        for k in range(4, trace.candidate_feature_count[req_idx, position, rank]):
            rate = HASHED_RATE if features[rank, k] >= HASHED_TOKEN else CHOICE_RATE
            adagrad_step(table, squares, features[rank, k], gradient, rate)
    gradient = (0.0 if found else 1.0) - probs[MAX_CANDIDATES]
    fraction = trace.escape_fraction[req_idx, position]
    escape = trace.escape_feature[req_idx, position]
    adagrad_step(table, squares, escape[3], gradient * (1.0 - fraction), CHOICE_RATE)
    adagrad_step(table, squares, escape[4], gradient * fraction, CHOICE_RATE)
    adagrad_step(table, squares, escape[5], gradient, CHOICE_RATE)
    adagrad_step(table, squares, escape[6], gradient, CHOICE_RATE)
