"""Where drafts end: lengths that pay, given probabilities and what a step costs."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from reprise.spec.api.config import DraftConfig
from reprise.spec.api.scheduling_mode import SchedulingMode
from reprise.spec.lengths.best_lengths import (
    LengthCosts,
    best_lengths,
    curve_now,
    falling_marginal_gains,
    select_lengths,
)
from reprise.spec.lengths.cost_model import FIRST_REACH, FIRST_STEPS, RECENT, CostModel
from reprise.spec.lengths.draft_length import (
    MAX_PAUSE_STEPS,
    MIN_GAIN_STEPS,
    MIN_PROB,
    PROBE_EVERY_STEPS,
    PROBE_MIN_PROB,
    SKIP_MIN_PROB,
    DraftLength,
)
from reprise.spec.lengths.step_times import LATEST
from reprise.spec.predictor.prediction_trace import make_trace, trace_table
from reprise.spec.runtime.layout import DRAFTED, REQUEST_FIELDS


def select_best(
    lengths_of: DraftLength, probs: npt.NDArray[np.float32], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """The lengths [B] that drafts of these probabilities [B, n] and lengths [B] are cut to."""
    batch = len(lengths)
    trace = make_trace(batch, probs.shape[1])
    trace.probs[:] = probs
    requests = np.zeros((batch, REQUEST_FIELDS), np.int64)
    requests[:, DRAFTED] = lengths
    req_indices = np.arange(batch)
    kept, _, gain = select_lengths(
        req_indices, requests, trace_table(trace), *lengths_of.length_costs(batch)
    )
    lengths_of.observe_gain(gain)
    assert requests[:, DRAFTED].tolist() == kept.tolist()
    cut: npt.NDArray[np.int64] = kept
    return cut


def test_drafts_are_found_by_their_request_index() -> None:
    random = np.random.default_rng(0)
    trace = make_trace(6, 5)
    trace.tokens[:] = random.integers(0, 99, trace.tokens.shape)
    trace.probs[:] = -np.sort(-random.random(trace.probs.shape).astype(np.float32))
    requests = np.zeros((6, REQUEST_FIELDS), np.int64)
    requests[:, DRAFTED] = lengths = np.array([1, 4, 0, 3, 2, 4])
    req_indices, curve = np.array([3, 1, 4]), 1.0 + 0.07 * np.arange(40)
    length_costs = LengthCosts(curve, np.zeros(40, np.bool_), 0.0, 0.0, step=1.0, cost=0.08)
    kept, tokens, gain = select_lengths(req_indices, requests, trace_table(trace), *length_costs)
    expected, expected_gain = best_lengths(
        trace.probs[req_indices], lengths[req_indices], curve, 0.08
    )
    assert kept.tolist() == expected.tolist() == requests[req_indices, DRAFTED].tolist()
    assert 0 < kept.sum() < lengths[req_indices].sum()
    assert gain == expected_gain
    assert tokens.tolist() == trace.tokens[req_indices, :4].tolist()
    assert requests[[0, 2, 5], DRAFTED].tolist() == [1, 0, 4]


def test_what_is_new_and_what_is_spent_either_way_change_the_curve() -> None:
    curve, is_new = np.array([1.0, 1.4, 1.5, 1.8]), np.array([True, False, True, False])
    now = curve_now(curve, is_new, 0.3, 0.5, 2.0)
    assert (2.0 * now).tolist() == pytest.approx([1.0, 1.2, 1.6, 1.6])
    assert curve_now(curve[:1], is_new[:1], 0.3, 0.5, 2.0).tolist() == [0.5]


@pytest.mark.parametrize("seed", range(8))
def test_a_machine_that_others_use_as_well_gets_its_drafts(seed: int) -> None:
    """Half of all steps are held up for as long as they take, or for twice as long."""
    random = np.random.default_rng(seed)
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    certain, drafted = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    cuts = []
    for _ in range(400):
        cut = 0
        if lengths_of.min_prob(8) < SKIP_MIN_PROB:
            lengths_of.observe_search(0.0003)
            cut = int(select_best(lengths_of, certain, drafted).sum())
        lengths_of.observe_step(8, cut)
        seconds = 0.003 * (1.1 + 0.006 * cut if cut else 1.0)
        held_up = random.choice([0.0, 0.0, 0.003, 0.006])
        lengths_of.costs.observe_step(8, cut, seconds + held_up * random.uniform(0.5, 1.0))
        cuts.append(cut)
    assert np.mean(cuts[100:]) > 20  # of 32


@pytest.mark.parametrize("held_up", [0, 20])
def test_a_step_held_up_does_not_forbid_looking_for_drafts(held_up: int) -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.010, 0.0001)
    certain, drafted = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    searches = 0
    for step in range(200):
        if lengths_of.min_prob(8) < SKIP_MIN_PROB:
            searches += 1
            lengths_of.observe_search(3.0 if step == held_up else 0.0005)
            select_best(lengths_of, certain, drafted)
        lengths_of.observe_step(8, 32)
    assert searches > 190


def test_drafts_keep_to_numbers_of_tokens_that_were_there() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=16))
    _measured(lengths_of, 8, 0.010, 0.0002)
    probs = np.tile(np.cumprod(np.full(17, 0.72, np.float32)), (8, 1))
    drafted = np.full(8, 16, np.int64)

    def total() -> int:
        while lengths_of.min_prob(8) == SKIP_MIN_PROB:
            lengths_of.costs.observe_step(8, 0, 0.010)
        return int(select_best(lengths_of, probs, drafted).sum())

    free = total()
    assert lengths_of.costs.is_new(8, free)[free]
    for d in range(33, 33 + LATEST):
        lengths_of.costs.observe_step(8, d, 0.010 + 0.0002 * d + 0.050)
        lengths_of.costs.observe_step(8, 16, 0.0132)
    lengths_of.costs.observe_step(8, free - 1, 0.010 + 0.0002 * (free - 1) + 0.050)
    assert lengths_of.costs.first_extra == pytest.approx(5.0, rel=0.1)
    assert not lengths_of.costs.is_new(8, total())[total()]
    # Where it pays for what is made once, a new number is tried all the same.
    probs[:] = 1.0
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
    lengths_of.min_prob(64)
    certain = np.tile(np.cumprod(np.full(9, 0.99, np.float32)), (64, 1))
    cut = select_best(lengths_of, certain, np.full(64, 8, np.int64))
    assert cut.sum() == 64


def _measured(lengths_of: DraftLength, batch: int, baseline_step_s: float, token_s: float) -> None:
    for _ in range(LATEST):
        for d in (0, 1, 2, 4, 8, 16, 32):
            lengths_of.costs.observe_step(batch, d, baseline_step_s + token_s * d)


def gain_of(probs: list[float], length: int, cost: float) -> float:
    """What a draft of so many tokens is worth, in steps, before what it costs now: the sum that
    draft_length.py begins with. `probs` go one token further than the longest draft."""
    easy = cost * (2.0 - cost) if cost < 1.0 else 1.0
    return sum(
        probs[j] - probs[j + 1] + easy * probs[j + 1]  # j from 0: token j + 1
        for j in range(length)
    )


def test_drafts_end_before_hard_tokens() -> None:
    fixed = DraftLength(DraftConfig(verify_cost=0.05))
    fixed.min_prob(1)

    def cut(*conditional: float) -> int:
        probs = np.cumprod(conditional).astype(np.float32)[None]
        return int(select_best(fixed, probs, np.array([len(conditional) - 1], np.int64))[0])

    assert cut(0.9, 0.9, 0.2, 0.9, 0.9) == 2  # the model itself adds the hard one
    assert cut(0.9, 0.97, 0.97, 0.97, 0.1) == 4  # through easy ones, for the sake of it
    assert cut(0.04, 0.9) == 0
    assert cut(1.0, 1.0, 1.0, 1.0) == 3  # as far as it goes, where nothing is hard


def test_a_fixed_cost_gives_the_best_length_of_each() -> None:
    random = np.random.default_rng(4)
    for _ in range(200):
        cost = float(random.choice([0.0, 0.005, 0.05, 0.2, 0.6]))
        lengths_of = DraftLength(DraftConfig(verify_cost=cost, num_speculative_tokens=8))
        probs = np.cumprod(random.uniform(0.3, 1.0, (2, 9)), axis=1).astype(np.float32)
        drafted = np.array([8, 5], np.int64)
        lengths_of.min_prob(2)
        cut = select_best(lengths_of, probs, drafted)
        for row, longest, length in zip(probs.tolist(), drafted.tolist(), cut, strict=True):
            values = [gain_of(row, n, cost) - cost * n for n in range(longest + 1)]
            assert values[length] == pytest.approx(max(values), abs=1e-6)


def test_cut_is_the_best_of_all() -> None:
    """Of all lengths that the averaged gains can tell apart; others are never better."""
    random = np.random.default_rng(1)
    for _ in range(30):
        lengths_of = DraftLength(DraftConfig(num_speculative_tokens=3))
        token_s = 0.001 * random.uniform(0.05, 1.0)
        _measured(lengths_of, 3, 0.003, token_s)
        probs = np.cumprod(random.uniform(0.2, 1.0, (3, 4)), axis=1).astype(np.float32)
        drafted = np.array([3, 2, 3], np.int64)
        lengths_of.min_prob(3)
        curve = lengths_of.costs.curve(3, 9)
        cost = lengths_of._token_cost()

        def value(lengths: tuple[int, ...], probs=probs, curve=curve, cost=cost) -> float:
            gains = [gain_of(probs[i].tolist(), n, cost) for i, n in enumerate(lengths)]
            return sum(gains) / 3 - float(curve[sum(lengths)])

        options = itertools.product(*(range(n + 1) for n in drafted))
        best = max(value(option) for option in options)
        cut = select_best(lengths_of, probs, drafted)
        assert value(tuple(cut.tolist())) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("cost", [0.0, 0.02, 0.3, 1.5])
def test_marginal_gains_fall_and_keep_their_best_sums(cost: float) -> None:
    random = np.random.default_rng(5)
    probs = np.cumprod(random.uniform(0.3, 1.0, (40, 9)), axis=1).astype(np.float32)
    lengths = random.integers(0, 9, 40)
    gains = falling_marginal_gains(probs, lengths, cost)
    for row, of_row, length in zip(probs.tolist(), gains, lengths.tolist(), strict=True):
        assert (np.diff(of_row[:length]) <= 1e-12).all()
        sums = np.cumsum(of_row[:length])
        plain = [gain_of(row, n + 1, cost) for n in range(length)]
        assert (sums >= np.array(plain) - 1e-6).all()
        if length:
            assert sums[-1] == pytest.approx(plain[-1], abs=1e-6)


def test_a_loaded_server_gets_no_drafts_but_probes() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.008, 0.001)
    probs = np.full((8, 5), 0.3, np.float32)
    drafted = np.full(8, 4, np.int64)
    seen = []
    for _ in range(PROBE_EVERY_STEPS):
        seen.append(lengths_of.min_prob(8))
        cut = select_best(lengths_of, probs, drafted)
        lengths_of.observe_step(8, int(cut.sum()))
    assert all(prob > 0.6 for prob in seen[:-1])
    assert seen[-1] == PROBE_MIN_PROB
    assert 0 < cut.sum() <= 4  # half a step's worth


def test_a_wrong_belief_that_drafts_are_dear_does_not_last() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    for d in 3 * (0, 16, 0, 0, 16, 0):
        lengths_of.costs.observe_step(8, d, 0.100 if d else 0.010)
    certain, drafted = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    lengths_of.min_prob(8)
    assert select_best(lengths_of, certain, drafted).sum() == 0
    cuts = []
    for _ in range(RECENT + 4 * PROBE_EVERY_STEPS):
        cut = 0
        if lengths_of.min_prob(8) < SKIP_MIN_PROB:
            cut = int(select_best(lengths_of, certain, drafted).sum())
        lengths_of.observe_step(8, cut)
        lengths_of.costs.observe_step(8, cut, 0.010 + 0.0001 * cut)
        cuts.append(cut)
    assert np.mean(cuts[8 * PROBE_EVERY_STEPS : RECENT]) > 3  # as far as nothing dear was seen
    assert np.mean(cuts[-PROBE_EVERY_STEPS:]) > 16


@pytest.mark.parametrize("other", [8, 30])
def test_where_no_step_without_drafts_can_be_measured_most_have_drafts(other: int) -> None:
    """One is due for batches of 8 when traffic comes of which every step prefills."""
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    for _ in range(FIRST_STEPS):
        lengths_of.costs.observe_step(8, 16, 0.011)
    assert lengths_of.min_prob(8) == SKIP_MIN_PROB
    looks = 0
    for step in range(2000):
        batch = 8 if step % 2 else other
        if lengths_of.min_prob(batch) < SKIP_MIN_PROB:
            looks += batch == 8
            lengths_of.observe_gain(1.0)
            lengths_of.observe_step(batch, 16)
        else:
            lengths_of.observe_step(batch, 0)
    assert looks > (1800 if other == 8 else 900)
    # One that is measured is enough.
    while lengths_of.min_prob(8) < SKIP_MIN_PROB:
        lengths_of.observe_step(8, 16)
    lengths_of.costs.observe_step(8, 0, 0.010)
    assert all(lengths_of.min_prob(8) < SKIP_MIN_PROB for _ in range(100))


def test_requests_without_drafts_pay_for_those_of_others() -> None:
    probs, full = np.tile(np.cumprod(np.full(5, 0.9)), (4, 1)), np.full(4, 4, np.int64)
    curve = np.append(1.0, np.full(16, 1.1))  # any draft costs a tenth of a step
    alone, gain = best_lengths(probs, full, curve, 0.01)
    among_many, gain_of_all = best_lengths(probs, full, curve, 0.01, 1.0, 4)
    assert alone.sum() == among_many.sum() == 16
    assert gain_of_all + 0.1 == pytest.approx((gain + 0.1) / 2)
    assert best_lengths(probs, full, curve, 0.01, 1.0, 60)[0].sum() == 0


def test_expensive_drafts_do_not_make_themselves_seem_worth_it() -> None:
    """Steps cost four times as much with drafts, and a token more than it saves: a saved step must
    not count four times for it."""
    certain, full = np.full((8, 17), 1.0, np.float32), np.full(8, 16, np.int64)
    dear = 1.0 + 1.2 / 8 * np.arange(129)
    fair = 1.0 + 0.9 / 8 * np.arange(129)
    kept, gain = best_lengths(certain, full, dear / 4.0, 1.2 / 4.0, 4.0)
    assert (kept.sum(), gain) == (0, 0.0)
    kept, gain = best_lengths(certain, full, fair / 4.0, 0.9 / 4.0, 4.0)
    assert kept.sum() == 128
    assert gain > 0.0


def test_where_an_engine_runs_ahead_drafts_are_harder_to_begin_than_to_go_on_with() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    for step in range(200):
        lengths_of.costs.observe_step(8, step % 4, 0.010 * (1.5 if step % 4 else 1.0))
    lengths_of.min_prob(8)
    waited, settled, ahead = (
        curve_now(*lengths_of.length_costs(8, mode)[:-1]) for mode in SchedulingMode
    )
    assert waited[1:4] - waited[0] == pytest.approx(0.5, abs=0.05)
    assert settled[1:4] - settled[0] == pytest.approx(0.25, abs=0.05)
    assert ahead.tolist() == waited.tolist()
    for mode in SchedulingMode:
        assert lengths_of.observe_gain(MIN_GAIN_STEPS / 2, mode) == (
            mode is not SchedulingMode.IN_FLIGHT
        )
        assert lengths_of.observe_gain(MIN_GAIN_STEPS * 2, mode)


def test_a_probe_that_could_not_be_verified_is_still_due() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.010, 0.0001)
    while lengths_of.min_prob(8) != PROBE_MIN_PROB:
        lengths_of.observe_step(8, 0)
    assert lengths_of.observe_gain(0.0, SchedulingMode.IN_FLIGHT)
    assert lengths_of.min_prob(8) == PROBE_MIN_PROB
    assert lengths_of.observe_gain(0.0, SchedulingMode.DRAINED)
    assert lengths_of.min_prob(8) != PROBE_MIN_PROB


def test_looking_for_drafts_costs_nothing_while_the_device_is_at_work() -> None:
    searched = []
    for saved_s in (0.0, 0.002):
        lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
        _measured(lengths_of, 8, 0.010, 0.0001)
        searched.append(0)
        for _ in range(PROBE_EVERY_STEPS - 1):
            if lengths_of.min_prob(8) < SKIP_MIN_PROB:
                searched[-1] += 1
                lengths_of.observe_gain(0.0, SchedulingMode.IN_FLIGHT, saved_s)
                lengths_of.observe_search(0.002)
            lengths_of.observe_step(8, 0)
    assert searched[0] < 10
    assert searched[1] > 40


def test_a_search_in_vain_pauses_until_there_is_something_new() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.010, 0.0001)
    nothing, none = np.zeros((8, 1), np.float32), np.zeros(8, np.int64)

    def searches(steps: int) -> int:
        count = 0
        for _ in range(steps):
            if lengths_of.min_prob(8) < SKIP_MIN_PROB:
                count += 1
                lengths_of.observe_search(0.002)
                select_best(lengths_of, nothing, none)
            lengths_of.observe_step(8, 0)
        return count

    assert searches(38) <= 6
    lengths_of.resume()
    assert searches(1) == 0  # one request of eight
    lengths_of.resume()
    assert searches(1) == 1
    assert searches(MAX_PAUSE_STEPS) <= 6


def test_a_few_poor_steps_among_good_ones_are_no_reason_to_pause() -> None:
    lengths_of = DraftLength(DraftConfig(num_speculative_tokens=4))
    _measured(lengths_of, 8, 0.010, 0.0001)
    certain, full = np.full((8, 5), 0.9, np.float32), np.full(8, 4, np.int64)
    nothing, none = np.zeros((8, 1), np.float32), np.zeros(8, np.int64)
    searched = []
    for step in range(300):
        searched.append(lengths_of.min_prob(8) < SKIP_MIN_PROB)
        if searched[-1]:
            lengths_of.observe_search(0.0005)
            select_best(lengths_of, *((nothing, none) if step % 20 < 10 else (certain, full)))
        lengths_of.observe_step(8, 0)
        lengths_of.costs.observe_step(8, 0, 0.010)
    assert sum(searched[40:]) == 260


def test_what_can_never_pay_is_not_predicted() -> None:
    assert DraftLength(DraftConfig(verify_cost=0.0)).min_prob(1) == MIN_PROB
    assert DraftLength(DraftConfig(verify_cost=0.02)).min_prob(4) == pytest.approx(0.0396)
    assert DraftLength(DraftConfig(verify_cost=2.0)).min_prob(1) == 1.0
