# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""The mixture: a softmax over pieces of evidence gives each candidate token its probability.

    weight(piece) = exp(sum of its features' weights) / sum over all pieces and the escape
    prob(token)   = sum of the weights of the pieces that predict it

A piece of evidence is one context that was met before, together with a token that followed it: what
follows the longest and other matching suffixes is what PPM predicts from (Cleary and Witten, "Data
compression using adaptive coding and partial string matching", 1984). The escape is PPM's as well:
the probability of a token that no context has seen. Contexts of all orders are mixed, as in context
tree weighting (Willems, Shtarkov and Tjalkens, 1995). Their weights are learned as the text comes,
as in PAQ (Mahoney, "Adaptive weighing of context models for lossless data compression", 2005), but
from features that pieces of evidence share.
"""

import math

from reprise.spec.predictor.features import ESCAPE_CONTEXT, ESCAPE_CORPUS, ESCAPE_NEAR
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import CANDIDATE_BUCKETS

MAX_ESCAPE_MATCH = 10


@compiled
def candidate_of(token, scratch, number):
    """(candidate index, number of candidates) of a token, made if new."""
    stamp = scratch.stamp[0]
    bucket = (token * 0x9E3779B1 >> 9) & (CANDIDATE_BUCKETS - 1)
    while scratch.bucket_stamp[bucket] == stamp:
        candidate = scratch.bucket_candidate[bucket]
        if scratch.token[candidate] == token:
            return candidate, number
        bucket = (bucket + 1) & (CANDIDATE_BUCKETS - 1)
    scratch.bucket_stamp[bucket] = stamp
    scratch.bucket_candidate[bucket] = number
    scratch.token[number] = token
    scratch.prob[number] = 0.0
    scratch.best[number] = -1
    scratch.rank[number] = -1
    return number, number + 1


@compiled
def gather_candidates(tokens, count, scratch):
    """Give each piece of evidence its candidate; return the number of candidates."""
    scratch.stamp[0] += 1
    number = 0
    for i in range(count):
        candidate, number = candidate_of(tokens[i], scratch, number)
        scratch.candidate[i] = candidate
    return number


@compiled
def mix_evidence(features, count, near, context, orders, table, escape_features, weights, scratch):
    """Fill the pieces' `weights` and the candidates' probabilities; return the escape's weight.

    near, context: longest match of either source; orders: number of orders found in the corpus.
    """
    escape_features[0] = ESCAPE_NEAR + min(near, MAX_ESCAPE_MATCH)
    escape_features[1] = ESCAPE_CONTEXT + min(context, MAX_ESCAPE_MATCH)
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
        scratch.prob[candidate] += weights[i]
        best = scratch.best[candidate]
        if best < 0 or weights[i] > weights[best]:
            scratch.best[candidate] = i
    return escape * scale
