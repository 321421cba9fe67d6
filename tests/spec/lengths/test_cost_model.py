"""What a step is measured to cost."""

import numpy as np
import pytest

from reprise.spec.lengths.cost_model import BASELINE_EVERY_STEPS, RECENT, CostModel
from reprise.spec.lengths.step_times import LATEST, PRIOR_COST


def test_curve_finds_a_linear_cost() -> None:
    model = CostModel()
    random = np.random.default_rng(0)
    for d in random.integers(0, 41, 3000):
        model.observe_step(8, int(d), 0.004 + 0.0002 * d + random.normal(0, 1e-5))
    for _ in range(10):
        model.observe_step(8, 0, 0.004)
    curve = model.curve(8, 60)
    expected = (0.004 + 0.0002 * np.arange(61)) / 0.004
    assert curve[0] == 1.0
    assert np.abs(curve[:41] - expected[:41]).max() < 0.12
    assert np.abs(curve - expected).max() < 0.3


def test_curve_is_flat_where_the_step_is() -> None:
    model = CostModel()
    for _ in range(20):
        for d in (0, 4, 8, 16, 32, 64):
            model.observe_step(4, d, 0.010 if d <= 32 else 0.020)
    curve = model.curve(4, 64)
    assert curve[32] == pytest.approx(1.0, abs=0.1)
    assert curve[64] == pytest.approx(2.0, abs=0.1)


def test_any_draft_may_cost_at_once() -> None:
    model = CostModel()
    for _ in range(LATEST):
        model.observe_step(8, 0, 0.010)
        model.observe_step(8, 4, 0.014)
        model.observe_step(8, 16, 0.014)
    curve = model.curve(8, 16)
    assert curve.tolist() == pytest.approx([1.0] + [1.4] * 16, abs=0.05)


def test_steps_of_another_batch_size_do_not_mix() -> None:
    model = CostModel()
    for _ in range(LATEST):
        for batch, baseline_step_s in ((1, 0.010), (32, 0.040)):
            model.observe_step(batch, 0, baseline_step_s)
            model.observe_step(batch, 16, baseline_step_s + 0.010)
    assert model.curve(1, 16)[16] == pytest.approx(2.0, abs=0.02)
    assert model.curve(32, 16)[16] == pytest.approx(1.25, abs=0.02)
    assert model.baseline_step_s(32) == pytest.approx(0.040)


def test_prior_and_nonsense() -> None:
    model = CostModel()
    for batch, d, seconds in ((0, 0, 1.0), (5, -1, 1.0), (5, 0, 0.0), (5, 0, float("nan"))):
        model.observe_step(batch, d, seconds)
    assert model.baseline_step_s(5) is None
    assert model.curve(2, 3).tolist() == pytest.approx([1 + PRIOR_COST * d / 2 for d in range(4)])


def test_outliers_do_not_count() -> None:
    model = CostModel()
    for i in range(50):
        model.observe_step(8, 0, 10.0 if i % 5 == 0 else 0.01)
        model.observe_step(8, 16, 10.0 if i % 4 == 0 else 0.02)
    assert model.curve(8, 16)[16] == pytest.approx(2.0, abs=0.02)


def test_steps_are_compared_with_those_beside_them() -> None:
    """The machine may get slower and faster, and drafts may begin whenever it is slow."""
    model = CostModel()
    random = np.random.default_rng(2)
    drafting = False
    for step in range(2000):
        drafting = drafting if random.random() < 0.95 else not drafting
        pace_s = 0.005 * (1.0 + 0.5 * np.sin(step / 200)) * (1.6 if drafting else 1.0)
        d = int(random.integers(4, 20)) if drafting and random.random() < 0.5 else 0
        model.observe_step(8, d, pace_s * (1.05 + 0.01 * d if d else 1.0))
    curve = model.curve(8, 20)
    assert np.abs(curve[4:] - (1.05 + 0.01 * np.arange(4, 21))).max() < 0.06


def test_costs_never_fall_with_more_tokens() -> None:
    random = np.random.default_rng(6)
    for _ in range(10):
        model = CostModel()
        for _ in range(60):
            model.observe_step(8, int(random.integers(0, 50)), float(random.uniform(0.001, 0.1)))
        curve = model.curve(8, 100)
        assert curve[0] == 1.0
        assert (np.diff(curve) >= 0.0).all()


def test_a_few_unlucky_steps_do_not_forbid_long_drafts() -> None:
    model = CostModel()
    for _ in range(LATEST):
        model.observe_step(8, 0, 0.010)
        model.observe_step(8, 8, 0.011)
        model.observe_step(8, 16, 0.012)
    for seconds in (0.100, 0.014, 0.014, 0.100, 0.014, 0.100, 0.014, 0.014):
        model.observe_step(8, 0, 0.010)
        model.observe_step(8, 32, seconds)
    assert model.curve(8, 32)[32] == pytest.approx(1.4, abs=0.05)
    for _ in range(3 * LATEST):
        model.observe_step(8, 0, 0.010)
        model.observe_step(8, 32, 0.100)
    assert model.curve(8, 32)[32] == pytest.approx(10.0, abs=1.0)
    for _ in range(RECENT):
        model.observe_step(8, 0, 0.010)
        model.observe_step(8, 8, 0.011)
        model.observe_step(8, 16, 0.012)
        model.observe_step(8, 24, 0.013)
    assert model.curve(8, 32)[32] == pytest.approx(1.4, abs=0.01)


def test_a_dear_step_is_believed_at_once_but_not_wholly() -> None:
    model = CostModel()
    for _ in range(4):
        model.observe_step(32, 0, 0.010)
    model.observe_step(32, 32, 0.500)  # the first of 64 tokens: kernels were compiled
    assert model.curve(32, 32)[32] == pytest.approx(1.0 + PRIOR_COST, abs=0.1)
    model.observe_step(32, 32, 0.020)
    assert 1.2 < model.curve(32, 32)[32] < 2.0


def test_what_first_steps_cost_is_known_beside_what_others_do() -> None:
    model = CostModel()
    for _ in range(LATEST):
        model.observe_step(32, 0, 0.010)
    for d in range(8, 8 + 2 * LATEST, 2):  # each number of tokens for the first time
        model.observe_step(32, d, 0.010 + 0.0001 * d + 0.005)
        for _ in range(3):
            model.observe_step(32, d, 0.010 + 0.0001 * d)
            model.observe_step(32, 0, 0.010)
    assert model.first_extra == pytest.approx(0.5, abs=0.1)
    assert model.curve(32, 16)[16] == pytest.approx(1.16, abs=0.03)
    assert model.is_new(32, 9).tolist() == [False] + 7 * [True] + [False, True]
    # Tokens in all count, whoever they are for.
    assert model.is_new(31, 2).tolist() == [True, False, True]
    assert model.is_new(30_000, 3).all()


def test_no_step_is_the_first_where_everything_was_made_before() -> None:
    model = CostModel()
    model.note_ready(128)
    assert not model.is_new(32, 96).any()
    assert model.is_new(32, 97)[97]
    model.note_ready(2000)
    assert not model.is_new(1, 1999).any()
    assert model.is_new(1, 2000)[2000]


def test_steps_that_cost_what_all_do_are_no_first_steps() -> None:
    model = CostModel()
    for d in range(60):
        model.observe_step(32, 0, 0.010)
        for _ in range(2):
            model.observe_step(32, d, 0.010 + 0.0001 * d)
    assert model.first_extra < 0.01


def test_a_rest_is_due_where_none_was_seen_for_long() -> None:
    model = CostModel()
    assert not model.needs_baseline_step(8)
    for _ in range(10):
        model.observe_step(8, 16, 0.02)
    assert model.needs_baseline_step(8)
    for _ in range(4):
        model.observe_step(8, 0, 0.01)
    assert not model.needs_baseline_step(8)
    for _ in range(BASELINE_EVERY_STEPS):
        model.observe_step(8, 16, 0.02)
    assert model.needs_baseline_step(8)
