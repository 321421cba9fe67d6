# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of compiled functions; shapes are in the comments and docstrings)
"""What drafts cost, from pairs of steps near each other: a robust regression, compiled.

A step that verifies d > 0 drafted tokens is taken to cost, where one without drafts costs 1,

    1 + any draft + first of its kind + the slope over d tokens, which bends at KNOTS

The ratio of two steps' times is the ratio of their costs, times noise, for a machine that slows
down meets both. All pairs are fitted together, as logarithms, and drawn to start values, the less
so the more pairs there are and the less noise. A pair that is far off pulls no stronger than one
that is off a little (Huber's loss, "Robust estimation of a location parameter", 1964, by
reweighted least squares): one of its steps was held up. How much noise there is, pairs of
alike steps tell.
"""

import math

import numpy as np

from reprise.spec.runtime.compiled import compiled

ANY, FIRST, SLOPE, BENDS = 0, 1, 2, 3
KNOTS = np.array([0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096], np.float64)
SIZE = BENDS + len(KNOTS)
NUMBER, DRAFTED, IS_FIRST, LOG_SECONDS = range(4)  # of a step
WITH_BASELINE, WITHOUT_BASELINE, ALIKE, STEPS = range(4)  # pairs, and what else is counted
LATEST = 15
LATEST_PAIRS = 256
NEAR = 4  # steps between two that are compared
PRIOR_COST = 0.02  # of a token, in steps of its request
ANY_SD = 0.1
FIRST_SD = 1.0
SLOPE_SD = 0.1  # in steps of a request
BEND_SD = 0.05
MIN_NOISE = 0.01
NORMAL = 1.48  # standard deviations of normal noise against its median
PRIOR_NOISE = 0.1
PRIOR_PAIRS = 8
FAR_OFF = 2.0  # times the noise: from there on a pair pulls no stronger
OVERLAP = 4.0  # a step is in several pairs, which therefore say less together
MAX_ITERATIONS = 10
SMALL = 0.01  # a change, in standard deviations of the start values
MIN_COST = 0.5


def start_costs(batch, token_cost=0.0):
    """The costs [n] to start from, for steps of `batch` requests, and how far off they may be [n]
    (standard deviations). `token_cost`: of a drafted token at least, however many requests share a
    step, in steps."""
    costs, spread = np.zeros(SIZE), np.full(SIZE, max(BEND_SD / batch, token_cost))
    costs[SLOPE] = max(PRIOR_COST / batch, token_cost)
    spread[:BENDS] = ANY_SD, FIRST_SD, max(SLOPE_SD / batch, 2.0 * token_cost)
    return costs, spread


@compiled
def parts_of(drafted, is_first, parts):
    """Set `parts` [n] to what the costs are multiplied with in a step."""
    parts[:] = 0.0
    if drafted > 0:
        parts[ANY] = 1.0
        parts[SLOPE] = drafted
        for k in range(len(KNOTS)):
            until = KNOTS[k + 1] if k + 1 < len(KNOTS) else drafted
            parts[BENDS + k] = max(0.0, min(drafted, until) - KNOTS[k])
    if is_first != 0.0:
        parts[FIRST] = 1.0


@compiled
def step_cost(costs, parts):
    """What a step costs, one without drafts being 1."""
    return max(MIN_COST, 1.0 + (costs * parts).sum())


@compiled
def pair_up(latest, pairs, counts, step):
    """Record a step [4], of the columns NUMBER to LOG_SECONDS, and pair it with those of `latest`
    [k, 4] that are near. `pairs` [3, LATEST_PAIRS, 8] keeps the latest of each kind; `counts` [4]:
    of each kind, and of steps."""
    seen = counts[STEPS]
    for back in range(min(NEAR, seen, len(latest))):
        other = latest[(seen - 1 - back) % len(latest)]
        if other[NUMBER] < step[NUMBER] - NEAR:
            break
        kind = WITHOUT_BASELINE
        if step[DRAFTED] == other[DRAFTED] and step[IS_FIRST] == other[IS_FIRST]:
            kind = ALIKE
        elif step[DRAFTED] == 0.0 or other[DRAFTED] == 0.0:
            kind = WITH_BASELINE
        pair = pairs[kind, counts[kind] % LATEST_PAIRS]
        pair[:4] = step
        pair[4:] = other
        counts[kind] += 1
    latest[seen % len(latest)] = step
    counts[STEPS] += 1


@compiled
def pair_up_all(latest, pairs, counts, steps):
    """Record steps [n, 4], one after another."""
    for i in range(len(steps)):
        pair_up(latest, pairs, counts, steps[i])


@compiled
def noise_of(pairs, count, since):
    """How far the times of alike steps near each other are apart (the standard deviation, if they
    were normal), from `count` pairs [n, 8] of them."""
    apart = np.full(PRIOR_PAIRS + count, PRIOR_NOISE)
    many = PRIOR_PAIRS
    for m in range(count):
        if pairs[m, NUMBER] > since:
            apart[many] = NORMAL * abs(pairs[m, LOG_SECONDS] - pairs[m, 4 + LOG_SECONDS])
            many += 1
    return max(MIN_NOISE, np.median(apart[:many]))


@compiled
def fit(costs, start, spread, pairs, counts, since):
    """Fit `costs` [n] to the pairs of steps after number `since`, by reweighted least squares that
    go on from what they are; their covariance [n, n].

    start, spread [n]: see `start_costs`; pairs, counts: see `pair_up`.
    """
    many = 0
    used = np.empty((2 * LATEST_PAIRS, 8))
    for kind in (WITH_BASELINE, WITHOUT_BASELINE):
        for m in range(min(counts[kind], LATEST_PAIRS)):
            if pairs[kind, m, NUMBER] > since:
                used[many] = pairs[kind, m]
                many += 1
    noise = noise_of(pairs[ALIKE], min(counts[ALIKE], LATEST_PAIRS), since)
    one, other = np.empty(SIZE), np.empty(SIZE)
    slopes, off = np.empty((many, SIZE)), np.empty(many)
    weighted = np.empty((SIZE, SIZE))
    some = np.empty(SIZE, np.int64)
    covariance = np.diag(spread**2)
    for _ in range(MAX_ITERATIONS if many else 0):
        for m in range(many):
            parts_of(used[m, DRAFTED], used[m, IS_FIRST], one)
            parts_of(used[m, 4 + DRAFTED], used[m, 4 + IS_FIRST], other)
            cost, its_cost = step_cost(costs, one), step_cost(costs, other)
            log_ratio = used[m, LOG_SECONDS] - used[m, 4 + LOG_SECONDS]
            off[m] = log_ratio - math.log(cost / its_cost)
            slopes[m] = one / cost - other / its_cost
            if one[FIRST] != other[FIRST]:
                # It shows what first steps cost, and nothing else: some are made for seconds.
                slopes[m, :FIRST] = 0.0
                slopes[m, SLOPE:] = 0.0
        weighted[:] = 0.0
        towards = (start - costs) / spread**2
        for i in range(SIZE):
            weighted[i, i] = 1.0 / spread[i] ** 2
        for m in range(many):
            weight = 1.0 / (OVERLAP * noise**2 * max(1.0, abs(off[m]) / (FAR_OFF * noise)))
            count = 0
            for i in range(SIZE):
                if slopes[m, i] != 0.0:
                    some[count] = i
                    count += 1
            for a in range(count):
                i = some[a]
                towards[i] += weight * slopes[m, i] * off[m]
                for b in range(count):
                    weighted[i, some[b]] += weight * slopes[m, i] * slopes[m, some[b]]
        covariance = np.linalg.inv(weighted)
        largest = 0.0
        for i in range(SIZE):
            change = (covariance[i] * towards).sum()
            costs[i] += change
            largest = max(largest, abs(change) / spread[i])
        if largest < SMALL:
            break
    return covariance


@compiled
def baseline_seconds(latest, seen, costs):
    """What a step without drafts takes, from the latest ones; from all, where there is none."""
    parts = np.empty(SIZE)
    seconds = np.empty(len(latest))
    count, baselines = min(seen, len(latest)), 0
    for m in range(count):
        if latest[m, DRAFTED] == 0.0:
            seconds[baselines] = math.exp(latest[m, LOG_SECONDS])
            baselines += 1
    if baselines == 0:
        for m in range(count):
            parts_of(latest[m, DRAFTED], latest[m, IS_FIRST], parts)
            seconds[m] = math.exp(latest[m, LOG_SECONDS]) / step_cost(costs, parts)
        baselines = count
    return np.median(seconds[:baselines])


@compiled
def min_deviation(covariance, max_tokens):
    """Standard deviation of the relative cost of as many drafted tokens as it is known best for: 1,
    as many as at one of the KNOTS below `max_tokens`, or `max_tokens`, which is 1 or more."""
    parts = np.empty(SIZE)
    smallest = math.inf
    for k in range(np.count_nonzero(max_tokens > KNOTS) + 1):
        parts_of(min(float(max_tokens), max(1.0, KNOTS[k])), 0.0, parts)
        smallest = min(smallest, (parts * (covariance @ parts)).sum())
    return math.sqrt(max(0.0, smallest))


@compiled
def cost_curve(costs, max_tokens, seen, discount):
    """Return the relative cost [max_tokens + 1] of 0..max_tokens drafted tokens: 1.0 without, and
    never less for more.

    Of what any draft costs at once, up to `discount` is taken off. Up to the `seen` tokens that
    there were, fewer cost no more than more do; beyond, more cost no less than fewer do.
    """
    curve = np.ones(max_tokens + 1)
    cost, k = 1.0 + max(costs[ANY] - discount, min(0.0, costs[ANY])), 0
    for d in range(1, max_tokens + 1):
        if k + 1 < len(KNOTS) and d > KNOTS[k + 1]:
            k += 1
        cost += costs[SLOPE] + costs[BENDS + k]
        curve[d] = max(1.0, cost)
    for d in range(min(seen, max_tokens) - 1, 0, -1):
        curve[d] = min(curve[d], curve[d + 1])
    for d in range(max(seen, 1), max_tokens + 1):
        curve[d] = max(curve[d], curve[d - 1])
    return curve
