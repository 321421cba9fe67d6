"""Where drafts end, and what a step is measured to cost."""

import itertools

import numpy as np
import pytest

from reprise.spec.config import DraftConfig
from reprise.spec.cost_model import PRIOR_COST, CostModel
from reprise.spec.draft_length import PROBE_EVERY, PROBE_LEAST, DraftLength


def test_curve_finds_a_linear_cost() -> None:
    model = CostModel()
    random = np.random.default_rng(0)
    for n in random.integers(8, 60, 3000):
        model.observe_step(int(n), 0.004 + 0.0002 * n + random.normal(0, 1e-5))
    curve = model.curve(8, 40)
    expected = (0.004 + 0.0002 * (8 + np.arange(41))) / (0.004 + 0.0002 * 8)
    assert curve[0] == 1.0
    assert np.abs(curve - expected).max() < 0.04


def test_curve_is_flat_where_the_step_is() -> None:
    model = CostModel()
    for _ in range(20):
        for n in (4, 8, 16, 32, 64):
            model.observe_step(n, 0.010 if n <= 32 else 0.020)
    curve = model.curve(4, 60)
    assert curve[28] == pytest.approx(1.0)
    assert curve[60] == pytest.approx(2.0)


def test_prior_and_nonsense() -> None:
    model = CostModel()
    for n, seconds in ((0, 1.0), (5, -1.0), (5, 0.0), (5, 1e9), (5, float("nan"))):
        model.observe_step(n, seconds)
    assert not model.known()
    assert model.curve(2, 3).tolist() == pytest.approx([1 + PRIOR_COST * d / 2 for d in range(4)])


def test_an_outlier_counts_little() -> None:
    model = CostModel()
    for _ in range(50):
        model.observe_step(8, 0.01)
        model.observe_step(16, 0.02)
    model.observe_step(8, 10.0)
    assert model.curve(8, 8)[8] > 1.7


def test_cut_is_the_best_of_all() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=3))
    random = np.random.default_rng(1)
    for _ in range(30):
        for n in (3, 6, 12):
            lengths_of.costs.observe_step(n, 0.001 * (3 + random.uniform(0.2, 2.0) * n))
        chances = np.cumprod(random.uniform(0.2, 1.0, (3, 3)), axis=1).astype(np.float32)
        drafted = np.array([3, 2, 3], np.int64)
        lengths_of.least_chance(3)
        curve = lengths_of.costs.curve(3, 9)

        def value(lengths: tuple[int, ...], chances=chances, curve=curve) -> float:
            gain = sum(float(chances[i, :n].sum()) for i, n in enumerate(lengths))
            return gain / 3 - lengths_of.speedup * float(curve[sum(lengths)])

        options = itertools.product(*(range(n + 1) for n in drafted))
        best = max(value(option) for option in options)
        cut = lengths_of.cut(chances, drafted)
        assert value(tuple(cut.tolist())) == pytest.approx(best)


def test_a_loaded_server_gets_no_drafts_but_probes() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    for n in (8, 16, 32) * 10:
        lengths_of.costs.observe_step(n, 0.001 * n)
    chances = np.full((8, 4), 0.3, np.float32)
    drafted = np.full(8, 4, np.int64)
    seen = []
    for _ in range(PROBE_EVERY):
        seen.append(lengths_of.least_chance(8))
        cut = lengths_of.cut(chances, drafted)
        lengths_of.observe_step(8, int(cut.sum()), 8)
    assert all(least > 0.6 for least in seen[:-1])
    assert seen[-1] == PROBE_LEAST


def test_fixed_cost_follows_the_speedup() -> None:
    lengths_of = DraftLength(DraftConfig(verify_cost=0.02))
    for _ in range(2000):
        lengths_of.observe_step(1, 5, 3)
    assert lengths_of.speedup == pytest.approx(3 / 1.1, rel=0.02)
    assert lengths_of.least_chance(1) == pytest.approx(0.02 * lengths_of.speedup)
