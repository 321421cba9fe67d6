# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Attention: a softmax over components and an escape gives each candidate token its chance.

weight(component) = exp(sum of its features' weights) / sum over all components and the escape
chance(token)     = sum of the weights of the components that predict it
"""

import math

from reprise.spec.predictor.features import ESCAPE_CONTEXT, ESCAPE_CORPUS, ESCAPE_NEAR
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import CANDIDATE_SLOTS

MOST_ESCAPE = 10


@compiled
def candidate_of(token, scratch, number):
    """(candidate index, number of candidates) of a token, made if new."""
    stamp = scratch.stamp[0]
    slot = (token * 0x9E3779B1 >> 9) & (CANDIDATE_SLOTS - 1)
    while scratch.slot_stamp[slot] == stamp:
        candidate = scratch.slot_candidate[slot]
        if scratch.token[candidate] == token:
            return candidate, number
        slot = (slot + 1) & (CANDIDATE_SLOTS - 1)
    scratch.slot_stamp[slot] = stamp
    scratch.slot_candidate[slot] = number
    scratch.token[number] = token
    scratch.chance[number] = 0.0
    scratch.best[number] = -1
    scratch.place[number] = -1
    return number, number + 1


@compiled
def gather_candidates(tokens, count, scratch):
    """Give each of the components its candidate; returns the number of candidates."""
    scratch.stamp[0] += 1
    number = 0
    for i in range(count):
        candidate, number = candidate_of(tokens[i], scratch, number)
        scratch.candidate[i] = candidate
    return number


@compiled
def attend(features, count, near, context, orders, table, escape_features, weights, scratch):
    """Fill component `weights` and candidate chances; returns the escape's weight.

    near, context: longest match of either source; orders: number of orders found in the corpus.
    """
    escape_features[0] = ESCAPE_NEAR + min(near, MOST_ESCAPE)
    escape_features[1] = ESCAPE_CONTEXT + min(context, MOST_ESCAPE)
    escape_features[2] = ESCAPE_CORPUS + orders
    escape = table[escape_features[0]] + table[escape_features[1]] + table[escape_features[2]]
    highest = escape
    for i in range(count):
        f = features[i]
        score = table[f[0]] + table[f[1]] + table[f[2]] + table[f[3]] + table[f[4]] + table[f[5]]
        weights[i] = score
        highest = max(highest, score)
    escape = math.exp(escape - highest)
    total = escape
    for i in range(count):
        weights[i] = math.exp(weights[i] - highest)
        total += weights[i]
    scale = 1.0 / total
    for i in range(count):
        weights[i] *= scale
        candidate = scratch.candidate[i]
        scratch.chance[candidate] += weights[i]
        best = scratch.best[candidate]
        if best < 0 or weights[i] > weights[best]:
            scratch.best[candidate] = i
    return escape * scale
