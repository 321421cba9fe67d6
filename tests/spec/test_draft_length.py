"""Where drafts end, and what a step is measured to cost."""

import itertools

import numpy as np
import pytest

from reprise.spec.config import DraftConfig
from reprise.spec.cost_model import FIRST_REACH, RECENT, REST_EVERY, CostModel
from reprise.spec.draft_length import (
    LEAST_CHANCE,
    LONGEST_PAUSE,
    NEVER,
    PROBE_EVERY,
    PROBE_LEAST,
    DraftLength,
    falling_worths,
)
from reprise.spec.step_times import LATEST, PRIOR_COST


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
        for batch, rest_s in ((1, 0.010), (32, 0.040)):
            model.observe_step(batch, 0, rest_s)
            model.observe_step(batch, 16, rest_s + 0.010)
    assert model.curve(1, 16)[16] == pytest.approx(2.0, abs=0.02)
    assert model.curve(32, 16)[16] == pytest.approx(1.25, abs=0.02)
    assert model.rest_s(32) == pytest.approx(0.040)


def test_prior_and_nonsense() -> None:
    model = CostModel()
    for batch, d, seconds in ((0, 0, 1.0), (5, -1, 1.0), (5, 0, 0.0), (5, 0, float("nan"))):
        model.observe_step(batch, d, seconds)
    assert model.rest_s(5) is None
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


@pytest.mark.parametrize("seed", range(8))
def test_a_machine_that_others_use_as_well_gets_its_drafts(seed: int) -> None:
    """Half of all steps are held up for as long as they take, or for twice as long."""
    random = np.random.default_rng(seed)
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    certain, drafted = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    cuts = []
    for _ in range(400):
        cut = 0
        if lengths_of.least_chance(8) < NEVER:
            lengths_of.observe_search(0.0003)
            cut = int(lengths_of.cut(certain, drafted).sum())
        lengths_of.observe_step(8, cut)
        seconds = 0.003 * (1.1 + 0.006 * cut if cut else 1.0)
        held_up = random.choice([0.0, 0.0, 0.003, 0.006])
        lengths_of.costs.observe_step(8, cut, seconds + held_up * random.uniform(0.5, 1.0))
        cuts.append(cut)
    assert np.mean(cuts[100:]) > 20  # of 32


def test_costs_never_fall_with_more_tokens() -> None:
    random = np.random.default_rng(6)
    for _ in range(10):
        model = CostModel()
        for _ in range(60):
            model.observe_step(8, int(random.integers(0, 50)), float(random.uniform(0.001, 0.1)))
        curve = model.curve(8, 100)
        assert curve[0] == 1.0
        assert (np.diff(curve) >= 0.0).all()


def test_a_step_held_up_does_not_forbid_looking_for_drafts() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.010, 0.0001)
    certain, drafted = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    searches = 0
    for step in range(200):
        if lengths_of.least_chance(8) < NEVER:
            searches += 1
            lengths_of.observe_search(3.0 if step == 20 else 0.0005)
            lengths_of.cut(certain, drafted)
        lengths_of.observe_step(8, 32)
    assert searches > 190


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


def test_steps_that_cost_what_all_do_are_no_first_steps() -> None:
    model = CostModel()
    for d in range(60):
        model.observe_step(32, 0, 0.010)
        for _ in range(2):
            model.observe_step(32, d, 0.010 + 0.0001 * d)
    assert model.first_extra < 0.01


def test_drafts_keep_to_numbers_of_tokens_that_were_there() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=16))
    _measured(lengths_of, 8, 0.010, 0.0002)
    chances = np.tile(np.cumprod(np.full(17, 0.72, np.float32)), (8, 1))
    drafted = np.full(8, 16, np.int64)

    def total() -> int:
        while lengths_of.least_chance(8) == NEVER:
            lengths_of.costs.observe_step(8, 0, 0.010)
        return int(lengths_of.cut(chances, drafted).sum())

    free = total()
    assert lengths_of.costs.is_new(8, free)[free]
    for d in range(33, 33 + LATEST):
        lengths_of.costs.observe_step(8, d, 0.010 + 0.0002 * d + 0.050)
        lengths_of.costs.observe_step(8, 16, 0.0132)
    lengths_of.costs.observe_step(8, free - 1, 0.010 + 0.0002 * (free - 1) + 0.050)
    assert lengths_of.costs.first_extra == pytest.approx(5.0, rel=0.1)
    assert not lengths_of.costs.is_new(8, total())[total()]
    # Where it pays for what is made once, a new number is tried all the same.
    chances[:] = 1.0
    lengths_of.costs.first_extra = 0.2
    assert lengths_of.costs.is_new(8, total())[total()]


def test_no_more_is_tried_than_twice_what_was_seen() -> None:
    model = CostModel()
    assert model.reach(1) == FIRST_REACH
    assert model.reach(64) == 64
    for _ in range(4):
        model.observe_step(64, 0, 0.010)
    for _ in range(2):
        model.observe_step(64, 60, 0.011)
    assert model.reach(64) == 120
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=8))
    lengths_of.least_chance(64)
    certain = np.tile(np.cumprod(np.full(9, 0.99, np.float32)), (64, 1))
    cut = lengths_of.cut(certain, np.full(64, 8, np.int64))
    assert cut.sum() == 64


def test_a_rest_is_due_where_none_was_seen_for_long() -> None:
    model = CostModel()
    assert not model.wants_rest(8)
    for _ in range(10):
        model.observe_step(8, 16, 0.02)
    assert model.wants_rest(8)
    for _ in range(4):
        model.observe_step(8, 0, 0.01)
    assert not model.wants_rest(8)
    for _ in range(REST_EVERY):
        model.observe_step(8, 16, 0.02)
    assert model.wants_rest(8)


def _measured(lengths_of: DraftLength, batch: int, rest_s: float, token_s: float) -> None:
    for _ in range(LATEST):
        for d in (0, 1, 2, 4, 8, 16, 32):
            lengths_of.costs.observe_step(batch, d, rest_s + token_s * d)


def worth_of(chances: list[float], length: int, cost: float) -> float:
    """What a draft of so many tokens is worth, in steps, before what it costs now: the sum that
    draft_length.py begins with. `chances` go one token further than the longest draft."""
    easy = cost * (2.0 - cost) if cost < 1.0 else 1.0
    return sum(
        chances[j] - chances[j + 1] + easy * chances[j + 1]  # j from 0: token j + 1
        for j in range(length)
    )


def test_drafts_end_before_hard_tokens() -> None:
    fixed = DraftLength(DraftConfig(verify_cost=0.05))
    fixed.least_chance(1)

    def cut(*conditional: float) -> int:
        chances = np.cumprod(conditional).astype(np.float32)[None]
        return int(fixed.cut(chances, np.array([len(conditional) - 1], np.int64))[0])

    assert cut(0.9, 0.9, 0.2, 0.9, 0.9) == 2  # the model itself adds the hard one
    assert cut(0.9, 0.97, 0.97, 0.97, 0.1) == 4  # through easy ones, for the sake of it
    assert cut(0.04, 0.9) == 0
    assert cut(1.0, 1.0, 1.0, 1.0) == 3  # as far as it goes, where nothing is hard


def test_a_fixed_cost_gives_the_best_length_of_each() -> None:
    random = np.random.default_rng(4)
    for _ in range(200):
        cost = float(random.choice([0.0, 0.005, 0.05, 0.2, 0.6]))
        lengths_of = DraftLength(DraftConfig(verify_cost=cost, num_speculative_tokens=8))
        chances = np.cumprod(random.uniform(0.3, 1.0, (2, 9)), axis=1).astype(np.float32)
        drafted = np.array([8, 5], np.int64)
        lengths_of.least_chance(2)
        cut = lengths_of.cut(chances, drafted)
        for row, most, length in zip(chances.tolist(), drafted.tolist(), cut, strict=True):
            values = [worth_of(row, n, cost) - cost * n for n in range(most + 1)]
            assert values[length] == pytest.approx(max(values), abs=1e-6)


def test_cut_is_the_best_of_all() -> None:
    """Of all lengths that the averaged worths can tell apart; others are never better."""
    random = np.random.default_rng(1)
    for _ in range(30):
        lengths_of = DraftLength(DraftConfig(num_speculative_tokens=3))
        token_s = 0.001 * random.uniform(0.05, 1.0)
        _measured(lengths_of, 3, 0.003, token_s)
        chances = np.cumprod(random.uniform(0.2, 1.0, (3, 4)), axis=1).astype(np.float32)
        drafted = np.array([3, 2, 3], np.int64)
        lengths_of.least_chance(3)
        curve = lengths_of.costs.curve(3, 9)
        cost = lengths_of._token_cost()

        def value(lengths: tuple[int, ...], chances=chances, curve=curve, cost=cost) -> float:
            worths = [worth_of(chances[i].tolist(), n, cost) for i, n in enumerate(lengths)]
            return sum(worths) / 3 - float(curve[sum(lengths)])

        options = itertools.product(*(range(n + 1) for n in drafted))
        best = max(value(option) for option in options)
        cut = lengths_of.cut(chances, drafted)
        assert value(tuple(cut.tolist())) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("cost", [0.0, 0.02, 0.3, 1.5])
def test_worths_fall_and_keep_their_best_sums(cost: float) -> None:
    random = np.random.default_rng(5)
    chances = np.cumprod(random.uniform(0.3, 1.0, (40, 9)), axis=1).astype(np.float32)
    lengths = random.integers(0, 9, 40)
    worths = falling_worths(chances, lengths, cost)
    for row, of_row, length in zip(chances.tolist(), worths, lengths.tolist(), strict=True):
        assert (np.diff(of_row[:length]) <= 1e-12).all()
        sums = np.cumsum(of_row[:length])
        plain = [worth_of(row, n + 1, cost) for n in range(length)]
        assert (sums >= np.array(plain) - 1e-6).all()
        if length:
            assert sums[-1] == pytest.approx(plain[-1], abs=1e-6)


def test_a_loaded_server_gets_no_drafts_but_probes() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.008, 0.001)
    chances = np.full((8, 5), 0.3, np.float32)
    drafted = np.full(8, 4, np.int64)
    seen = []
    for _ in range(PROBE_EVERY):
        seen.append(lengths_of.least_chance(8))
        cut = lengths_of.cut(chances, drafted)
        lengths_of.observe_step(8, int(cut.sum()))
    assert all(least > 0.6 for least in seen[:-1])
    assert seen[-1] == PROBE_LEAST
    assert 0 < cut.sum() <= 4  # half a step's worth


def test_a_wrong_belief_that_drafts_are_dear_does_not_last() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    for d in 3 * (0, 16, 0, 0, 16, 0):
        lengths_of.costs.observe_step(8, d, 0.100 if d else 0.010)
    certain, drafted = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    lengths_of.least_chance(8)
    assert lengths_of.cut(certain, drafted).sum() == 0
    cuts = []
    for _ in range(RECENT + 4 * PROBE_EVERY):
        cut = 0
        if lengths_of.least_chance(8) < NEVER:
            cut = int(lengths_of.cut(certain, drafted).sum())
        lengths_of.observe_step(8, cut)
        lengths_of.costs.observe_step(8, cut, 0.010 + 0.0001 * cut)
        cuts.append(cut)
    assert np.mean(cuts[8 * PROBE_EVERY : RECENT]) > 3  # as far as nothing dear was seen
    assert np.mean(cuts[-PROBE_EVERY:]) > 16


def test_a_search_in_vain_pauses_until_there_is_something_new() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.010, 0.0001)
    nothing, none = np.zeros((8, 1), np.float32), np.zeros(8, np.int64)

    def searches(steps: int) -> int:
        count = 0
        for _ in range(steps):
            if lengths_of.least_chance(8) < NEVER:
                count += 1
                lengths_of.observe_search(0.002)
                lengths_of.cut(nothing, none)
            lengths_of.observe_step(8, 0)
        return count

    assert searches(38) <= 6
    lengths_of.resume()
    assert searches(1) == 0  # one request of eight
    lengths_of.resume()
    assert searches(1) == 1
    assert searches(LONGEST_PAUSE) <= 6


def test_a_few_poor_steps_among_good_ones_are_no_reason_to_pause() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.010, 0.0001)
    certain, full = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    nothing, none = np.zeros((8, 1), np.float32), np.zeros(8, np.int64)
    searched = []
    for step in range(300):
        searched.append(lengths_of.least_chance(8) < NEVER)
        if searched[-1]:
            lengths_of.observe_search(0.0005)
            lengths_of.cut(*((nothing, none) if step % 20 < 10 else (certain, full)))
        lengths_of.observe_step(8, 0)
        lengths_of.costs.observe_step(8, 0, 0.010)
    assert sum(searched[40:]) == 260


def test_what_can_never_pay_is_not_predicted() -> None:
    assert DraftLength(DraftConfig(verify_cost=0.0)).least_chance(1) == LEAST_CHANCE
    assert DraftLength(DraftConfig(verify_cost=0.02)).least_chance(4) == pytest.approx(0.0396)
    assert DraftLength(DraftConfig(verify_cost=2.0)).least_chance(1) == 1.0
