# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""Best lengths: the batch's drafts are as long as verification pays.

Let P(j) be the probability that a draft is right up to and with its token j, and c what verifying a
token costs, a step without drafts being 1. A draft that ends at token k and is all right emits one
token more, the model's own. So to end there costs a step only if the next token, k + 1, would
have been right as well: if it is wrong, any draft would have ended there. A token that the model
adds is one that was hard to draft, or one that was easy and would have been drafted, and perhaps
been in vain, later. To draft token j is therefore worth, in steps of its request,

    P(j) - P(j + 1)         what follows it is hard, and comes without a step of its own
    + e(c) P(j + 1)         what follows it is easy: e(c) = c (2 - c), between c and a step

and costs c. Drafts so end before hard tokens, not after them, and go through easy ones for the
sake of a hard one behind. The worth of the tokens along a draft is averaged, so that it falls; then
all requests' tokens compete for what the batch's step may cost. Lengths that follow from expected
gain and measured cost, over a whole batch, are SmartSpec's idea as well, whose measure is goodput
(Liu et al., "Optimizing speculative decoding for serving large language models using goodput",
2024).
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reprise.spec.predictor.prediction_trace import open_trace
from reprise.spec.runtime.compiled import compiled
from reprise.spec.runtime.layout import DRAFTED


@compiled
def easy_token_gain(cost):
    """Return what a token is worth that would have been drafted later: what that costs, and nearly
    as much for drafts in vain. (c alone loses up to 1.2% of speed at costs of 0.1 and 0.2; 3 c,
    3%.)"""
    return cost * (2.0 - cost) if cost < 1.0 else 1.0


@compiled
def falling_marginal_gains(probs, lengths, cost):
    """Return what each drafted token is worth, [B, n - 1], averaged so that rows fall.

    probs [B, n] fall along each row; those of the drafted tokens, `lengths` [B] of them, and of the
    one after them count. Averaged: the greatest sums up to a token stay what they are.
    """
    batch, width = probs.shape[0], probs.shape[1] - 1
    gains = np.zeros((batch, width))
    easy = easy_token_gain(cost)
    for i in range(batch):
        start = 0
        while start < lengths[i]:
            best, until, total = -1.0, start, 0.0
            for k in range(start, lengths[i]):
                total += probs[i, k] - (1.0 - easy) * probs[i, k + 1]
                mean = total / (k + 1 - start)
                if mean >= best:
                    best, until = mean, k + 1
            gains[i, start:until] = best
            start = until
    return gains


@compiled
def best_lengths(probs, lengths, curve, cost, step=1.0, others=0):
    """Return the lengths [B] that are worth most, less what the step then costs, and how much that
    is, in steps, beyond a step without drafts.

    None where a draft costs more than as many steps without drafts as it is expected to save: what
    steps cost with drafts must not be what makes drafts seem worth it.

    probs [B, n], lengths [B]: as for `falling_marginal_gains`; curve [m + 1]: relative cost of a
    step by all drafted tokens, of which there may be m; cost: of one, in steps of its request;
    step: what one costs, as they are, in steps without drafts; others: requests of the step that
    have no drafts, whose steps cost more all the same.
    """
    batch = len(lengths)
    everyone = batch + others
    gains = falling_marginal_gains(probs, lengths, cost)
    ranked = np.empty(lengths.sum())
    count = 0
    for i in range(batch):
        for k in range(lengths[i]):
            ranked[count] = gains[i, k]
            count += 1
    ranked.sort()
    gained, best, at = 0.0, 0.0, 0
    for d in range(1, min(count, len(curve) - 1) + 1):
        gained += ranked[count - d]
        value = gained / everyone - (curve[d] - curve[0])
        if value > best:
            best, at = value, d
    kept = np.zeros_like(lengths)
    if at > 0:
        lowest, left = ranked[count - at], at
        for i in range(batch):
            while kept[i] < lengths[i] and gains[i, kept[i]] > lowest:
                kept[i] += 1
            left -= kept[i]
        for i in range(batch):
            while left > 0 and kept[i] < lengths[i] and gains[i, kept[i]] == lowest:
                kept[i] += 1
                left -= 1
        saved = 0.0
        for i in range(batch):
            saved += probs[i, : kept[i]].sum()
        if saved / everyone < (curve[at] - curve[0]) * step:
            kept[:] = 0
            best = 0.0
    return kept, best


@compiled
def curve_now(curve, is_new, first_extra, sunk, step):
    """Return the cost [m + 1] of the next step by all drafted tokens, in steps as they are.

    Args:
        curve: [m + 1] float64, in steps without drafts; 1 for none.
        is_new: [m + 1] bool, what `first_extra` is added to.
        first_extra: in steps without drafts.
        sunk: share of what any draft costs at once that is spent either way.
        step: what a step costs as they are, in steps without drafts.
    """
    costs = np.empty_like(curve)
    costs[0] = 1.0 / step
    for d in range(1, len(curve)):
        costs[d] = curve[d] + (first_extra if is_new[d] else 0.0)
    at_once = sunk * (costs[1] - 1.0) if len(curve) > 1 else 0.0
    for d in range(1, len(curve)):
        costs[d] = (costs[d] - at_once) / step
    return costs


@compiled
def select_lengths(
    req_indices, requests, trace_table, curve, is_new, first_extra, sunk, step, cost, others=0
):
    """Cut the drafts of req_indices [B] to the lengths that are worth most.

    Returns the lengths [B], the tokens [B, n] and what they gain; curve to step: as for
    `curve_now`, cost and others: as for `best_lengths`.
    """
    trace = open_trace(trace_table)
    lengths = requests[req_indices, DRAFTED]
    longest = lengths.max()
    probs = np.empty((len(req_indices), longest + 1), np.float32)
    tokens = np.empty((len(req_indices), longest), np.int32)
    for i in range(len(req_indices)):
        probs[i] = trace.probs[req_indices[i], : longest + 1]
        tokens[i] = trace.tokens[req_indices[i], :longest]
    costs = curve_now(curve, is_new, first_extra, sunk, step)
    kept, gain = best_lengths(probs, lengths, costs, cost, step, others)
    for i in range(len(req_indices)):
        requests[req_indices[i], DRAFTED] = kept[i]
    return kept, tokens, gain


class LengthCosts(NamedTuple):
    """What drafts are cut by, as `select_lengths` takes it."""

    curve: npt.NDArray[np.float64]  # [m + 1]
    is_new: npt.NDArray[np.bool_]  # [m + 1]
    first_extra: float
    sunk: float
    step: float
    cost: float
