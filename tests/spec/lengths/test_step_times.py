"""The fit of costs to pairs of steps, against plain least squares."""

import itertools

import numpy as np

from reprise.spec.lengths.step_times import (
    ALIKE,
    ANY,
    BENDS,
    FAR_OFF,
    FIRST,
    KNOTS,
    LATEST,
    LATEST_PAIRS,
    NEAR,
    OVERLAP,
    PRIOR_NOISE,
    PRIOR_PAIRS,
    SIZE,
    SLOPE,
    STEPS,
    WITH_BASELINE,
    WITHOUT_BASELINE,
    baseline_seconds,
    cost_curve,
    fit,
    min_deviation,
    pair_up,
    start_costs,
)

Step = tuple[int, int, bool, float]  # number, drafted, is_first, log_seconds


def _run(steps: list[Step]):
    latest, pairs = np.zeros((LATEST, 4)), np.zeros((3, LATEST_PAIRS, 8))
    counts = np.zeros(4, np.int64)
    for step in steps:
        pair_up(latest, pairs, counts, np.array(step, np.float64))
    return latest, pairs, counts


def _steps(seed: int, count: int, noise: float, *, firsts: float = 0.2) -> list[Step]:
    random = np.random.default_rng(seed)
    steps = []
    for number in range(1, count + 1):
        drafted = int(random.choice([0, 0, 1, 3, 8, 12, 20, 40]))
        is_first = bool(random.random() < firsts)
        cost = 1.0 + (0.1 + 0.006 * drafted + 0.01 * max(0, drafted - 16) if drafted else 0.0)
        seconds = 0.003 * (cost + 0.5 * is_first) * np.exp(random.normal(0.0, noise))
        steps.append((number, drafted, is_first, float(np.log(seconds))))
    return steps


def test_steps_near_each_other_are_paired() -> None:
    steps = [(n + (100 if n > 30 else 0), d, first, ls) for n, d, first, ls in _steps(1, 60, 0.1)]
    _, pairs, counts = _run(steps)
    expected: list[set[tuple[float, ...]]] = [set(), set(), set()]
    for one, other in itertools.combinations(steps, 2):
        if other[0] - one[0] <= NEAR:
            kind = WITH_BASELINE if one[1] == 0 or other[1] == 0 else WITHOUT_BASELINE
            expected[ALIKE if one[1:3] == other[1:3] else kind].add((*other, *one))
    assert counts.tolist() == [*map(len, expected), len(steps)]
    for kind in range(3):
        found = {tuple(pair) for pair in pairs[kind, : counts[kind]].tolist()}
        assert found == {tuple(map(float, pair)) for pair in expected[kind]}


def test_the_latest_pairs_are_kept() -> None:
    steps = _steps(2, 1000, 0.1)
    _, pairs, counts = _run(steps)
    assert counts.min() > LATEST_PAIRS
    _, later, later_counts = _run(steps[400:])
    assert later_counts.min() > LATEST_PAIRS
    for kind in range(3):
        assert sorted(pairs[kind].tolist()) == sorted(later[kind].tolist())


def test_the_fit_finds_what_the_steps_cost() -> None:
    _, pairs, counts = _run(_steps(3, 400, 0.02))
    start, spread = start_costs(8)
    costs = start.copy()
    covariance = fit(costs, start, spread, pairs, counts, 0)
    assert abs(costs[ANY] - 0.1) < 0.03
    assert abs(costs[FIRST] - 0.5) < 0.03
    expected = 1.1 + 0.006 * np.arange(41) + 0.01 * np.maximum(0, np.arange(41) - 16)
    assert np.abs(cost_curve(costs, 40, 40, 0.0)[1:] - expected[1:]).max() < 0.06
    assert min_deviation(covariance, 40) < 0.02


def test_the_fit_is_where_no_change_is_better() -> None:
    """Its loss, in plain Python, is least there: Huber's of the pairs, and the start values'."""
    _, pairs, counts = _run(_steps(4, 100, 0.1, firsts=0.0))
    start, spread = start_costs(8)
    costs = start.copy()
    for _ in range(20):
        fit(costs, start, spread, pairs, counts, 0)

    def cost(drafted: float, is_first: float, costs) -> float:
        total = 1.0 + costs[FIRST] * is_first
        if drafted:
            total += costs[ANY] + costs[SLOPE] * drafted
            for k, knot in enumerate(KNOTS):
                until = KNOTS[k + 1] if k + 1 < len(KNOTS) else drafted
                total += costs[BENDS + k] * max(0.0, min(drafted, until) - knot)
        return total

    used = [pair for kind in range(2) for pair in pairs[kind, : counts[kind]].tolist()]

    def offs(costs):
        return np.array(
            [p[3] - p[7] - np.log(cost(*p[1:3], costs) / cost(*p[5:7], costs)) for p in used]
        )

    alike = pairs[ALIKE, : counts[ALIKE]]
    apart = np.append(np.abs(alike[:, 3] - alike[:, 7]), np.full(PRIOR_PAIRS, PRIOR_NOISE / 1.48))
    noise = 1.48 * np.median(apart)

    def loss(costs) -> float:
        off, far = np.abs(offs(costs)), FAR_OFF * noise
        pulls = np.where(off < far, off**2 / 2, far * (off - far / 2)) / (OVERLAP * noise**2)
        return float(pulls.sum() + (((costs - start) / spread) ** 2).sum() / 2)

    least = loss(costs)
    for i in range(SIZE):
        for change in (-0.2, 0.2):
            other = costs.copy()
            other[i] += change * spread[i]
            assert loss(other) > least


def test_old_pairs_do_not_count() -> None:
    _, pairs, counts = _run(_steps(5, 100, 0.1))
    start, spread = start_costs(8)
    costs = start.copy()
    covariance = fit(costs, start, spread, pairs, counts, 100)
    assert (costs == start).all()
    assert (covariance == np.diag(spread**2)).all()


def test_a_step_without_drafts_is_known_where_there_was_none_lately() -> None:
    start, _ = start_costs(8)
    costs = start.copy()
    costs[ANY] = 0.5
    plain, draft = (1, 0, False, np.log(0.002)), (2, 1, False, np.log(0.0045075))
    latest, _, counts = _run([plain, draft])
    assert abs(baseline_seconds(latest, counts[STEPS], costs) - 0.002) < 1e-9
    latest, _, counts = _run([draft])
    assert abs(baseline_seconds(latest, counts[STEPS], costs) - 0.003) < 1e-5
