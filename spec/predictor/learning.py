# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Learning: one Adagrad step of both weight tables for each emitted token.

    square[f] += gradient**2;  weight[f] += rate * gradient / sqrt(square[f])

The gradient is that of the log chance of the emitted token: what a component or candidate was in
hindsight, minus what it was said to be.
"""

import math

from reprise.spec.predictor.features import HASHED_TOKEN
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import COMPONENT_FEATURES, MAX_CANDIDATES

ATTENTION_RATE = 0.05
CHOICE_RATE = 0.03
HASHED_RATE = 0.06  # of features that occur so rarely that they have to learn fast
NEGLIGIBLE = 1e-3


@compiled
def nudge(table, squares, feature, gradient, rate):
    """The step for one weight."""
    squares[feature] += gradient * gradient
    table[feature] += rate * gradient / math.sqrt(squares[feature])


@compiled
def learn_attention(trail, slot, position, token, table, squares):
    """Learn from `token` having come where the trail's position predicted."""
    count = trail.component_count[slot, position]
    tokens = trail.component_token[slot, position]
    weights = trail.component_weight[slot, position]
    features = trail.component_feature[slot, position]
    chance = 0.0
    for i in range(count):
        if tokens[i] == token:
            chance += weights[i]
    for i in range(count):
        gradient = -weights[i]
        if tokens[i] == token:
            gradient += weights[i] / chance
        if abs(gradient) > NEGLIGIBLE:
            for k in range(COMPONENT_FEATURES):
                if features[i, k] > 0:
                    nudge(table, squares, features[i, k], gradient, ATTENTION_RATE)
    gradient = (0.0 if chance > 0.0 else 1.0) - trail.escape_weight[slot, position]
    for k in range(3):
        nudge(
            table,
            squares,
            trail.escape_feature[slot, position, k],
            gradient,
            ATTENTION_RATE,
        )


@compiled
def learn_choice(trail, slot, position, token, table, squares):
    """Learn from `token` having come where the trail's position predicted."""
    tokens = trail.candidate_token[slot, position]
    chances = trail.candidate_chance[slot, position]
    features = trail.candidate_feature[slot, position]
    found = False
    for place in range(trail.candidate_count[slot, position]):
        gradient = -chances[place]
        if tokens[place] == token:
            gradient += 1.0
            found = True
        if abs(gradient) <= NEGLIGIBLE:
            continue
        fraction = trail.candidate_fraction[slot, position, place]
        for k in range(4):
            part = gradient * (fraction if k % 2 else 1.0 - fraction)
            nudge(table, squares, features[place, k], part, CHOICE_RATE)
        for k in range(4, trail.candidate_feature_count[slot, position, place]):
            rate = HASHED_RATE if features[place, k] >= HASHED_TOKEN else CHOICE_RATE
            nudge(table, squares, features[place, k], gradient, rate)
    gradient = (0.0 if found else 1.0) - chances[MAX_CANDIDATES]
    fraction = trail.escape_fraction[slot, position]
    escape = trail.escape_feature[slot, position]
    nudge(table, squares, escape[3], gradient * (1.0 - fraction), CHOICE_RATE)
    nudge(table, squares, escape[4], gradient * fraction, CHOICE_RATE)
    nudge(table, squares, escape[5], gradient, CHOICE_RATE)
    nudge(table, squares, escape[6], gradient, CHOICE_RATE)
