"""One draft length for a batch: what it settles on, how soon, and what finding out costs."""

import math
from itertools import pairwise

import numpy as np
import pytest

from reprise.spec.lengths.batch_length import (
    BatchDraftLength,
    capture_schedule,
)

CHOICES = (1, 3, 7, 15)
DELAY = 2  # steps until it is known what one came to


def serve(
    length: BatchDraftLength,
    *,
    batch: int,
    steps: int,
    right: float,
    token_cost: float,
    seed: int = 0,
    step_s: float = 0.005,
) -> tuple[list[int], float]:
    """Lengths of so many steps, and tokens a second to those without drafts. Each token is right
    with probability `right`; `token_cost`: of one for each request, in steps."""
    random = np.random.default_rng(seed)
    lengths, unseen, emitted, spent = [], [], 0, 0.0
    for _ in range(steps):
        k = length.choose(batch)
        wrong = random.random((batch, k + 1)) > right
        wrong[:, k] = True
        accepted = wrong.argmax(axis=1)
        seconds = step_s * (1.0 + token_cost * k)
        unseen.append((accepted, k, seconds * float(np.exp(random.normal(0, 0.02)))))
        emitted += batch + int(accepted.sum())
        spent += seconds
        lengths.append(k)
        if len(unseen) > DELAY:
            before, drafted, took_s = unseen.pop(0)
            length.observe([drafted] * batch, before.tolist(), step_time_s=took_s)
    return lengths, emitted / spent / (batch / step_s)


def step_s(batch: int, length: int, *, in_pieces: bool = False) -> float:
    """What a step of a model of 8 billion parameters takes on an H200, all tokens counted: nothing
    more up to 128, then as its matrix products were measured; `in_pieces`: without a graph."""
    tokens = batch * (length + 1)
    seconds = 0.0052 + 0.0000206 * max(0, tokens - 128) + 0.000013 * batch
    seconds += 0.0002 if length else 0.0
    return max(seconds, 0.0135) if in_pieces else seconds


def serve_on_device(
    length: BatchDraftLength,
    batches: list[int],
    *,
    right: float,
    pieces: bool = False,
    seed: int = 0,
) -> tuple[list[int], float]:
    """Lengths of the steps of these batches, and the speed relative to steps without drafts. With
    `pieces` all steps with drafts run without a graph. A step's drafts are made at the end of the
    one before it."""
    random = np.random.default_rng(seed)
    lengths: list[int] = []
    unseen: list[tuple[int, list[int], float, bool]] = []
    emitted = spent = plain = 0.0
    drafted = 0
    for batch in batches:
        following = length.choose(batch)
        wrong = random.random((batch, drafted + 1)) > right
        wrong[:, drafted] = True
        accepted = wrong.argmax(axis=1)
        seconds = step_s(batch, drafted, in_pieces=pieces and drafted > 0)
        measured = seconds * float(np.exp(random.normal(0, 0.02)))
        unseen.append((drafted, accepted.tolist(), measured, following > 0))
        plain += (batch + int(accepted.sum())) / batch * step_s(batch, 0)
        emitted += 1
        spent += seconds
        lengths.append(drafted)
        drafted = following
        if len(unseen) > 1:
            before, came, took_s, followed = unseen.pop(0)
            length.observe([before] * len(came), came, step_time_s=took_s, drafts_follow=followed)
    return lengths, plain / spent


DRAINING = [max(1, round(98 * (1 - step / 400))) for step in range(400)]
"""98 requests that begin at once, and end one after another."""


@pytest.mark.parametrize("right", [0.0, 0.1, 0.3, 0.4])
@pytest.mark.parametrize("batches", [[128] * 500, DRAINING], ids=["128", "draining"])
def test_at_128_drafts_that_lose_cost_less_than_two_percent(
    batches: list[int], right: float
) -> None:
    for seed in range(3):
        _, speed = serve_on_device(BatchDraftLength(CHOICES), batches, right=right, seed=seed)
        assert speed > 0.98


@pytest.mark.parametrize("right", [0.3, 0.45])
def test_steps_with_drafts_that_take_twice_as_long_are_given_up(right: float) -> None:
    for seed in range(3):
        lengths, speed = serve_on_device(
            BatchDraftLength(CHOICES), [128] * 600, right=right, pieces=True, seed=seed
        )
        assert speed > 0.98
        assert np.mean(np.array(lengths[100:]) > 0) < 0.1


def test_at_128_short_drafts_are_taken_where_they_pay() -> None:
    lengths, speed = serve_on_device(BatchDraftLength(CHOICES), [128] * 600, right=0.6)
    assert np.median(lengths[100:]) == 1
    assert speed > 1.1


def test_at_8_drafts_are_as_long_as_they_are_nearly_free() -> None:
    lengths, speed = serve_on_device(BatchDraftLength(CHOICES), [8] * 400, right=0.6)
    assert 3 <= np.median(lengths[60:]) <= 15
    assert speed > 1.8


def test_a_step_at_whose_end_drafts_are_made_is_no_measure_of_those_without() -> None:
    length = BatchDraftLength(CHOICES)
    for _ in range(8):
        length.observe([0] * 4, [0] * 4, step_time_s=0.02, drafts_follow=True)
    assert length.budget.undrafted_s(4) is None
    assert length.costs.baseline_step_s(4) is None
    length.observe([0] * 4, [0] * 4, step_time_s=0.005, drafts_follow=False)
    assert length.budget.undrafted_s(4) == 0.005


def test_to_measure_a_step_without_drafts_takes_two_of_them() -> None:
    """The second is sent before it is known what the first took, and shows the host at work for
    drafts again."""
    length = BatchDraftLength((1,))
    lengths, _ = serve_on_device(length, [8] * 1000, right=0.9)
    rests = "".join(map(str, lengths[300:])).split("1")
    assert {len(each) for each in rests if each} == {2}
    known_s = length.costs.baseline_step_s(8)
    assert known_s == pytest.approx(step_s(8, 0), rel=0.05)


@pytest.mark.parametrize("prefilled", [None, 512], ids=["no times", "prefilling"])
def test_where_no_step_without_drafts_can_be_measured_most_have_drafts(
    prefilled: int | None,
) -> None:
    """Once it is due, every step has a grammar, which says nothing of costs, or prefills."""
    length = BatchDraftLength(CHOICES)
    lengths = []
    for step in range(1000):
        k = length.choose(8)
        is_measured = step < 4
        lengths.append(k)
        length.observe(
            [k] * 8,
            [k] * 8,
            step_time_s=0.005 if is_measured or prefilled else None,
            prefilled=0 if is_measured else prefilled or 0,
        )
    assert 0 in lengths[4:8], "the test could not fail"
    assert np.mean(np.array(lengths[100:]) > 0) > 0.9
    assert 0 in lengths[-200:], "it is tried again"


def test_costs_are_learned_though_no_two_steps_are_of_as_many_tokens() -> None:
    """Whatever steps run on this device was captured at its start."""
    length = BatchDraftLength(CHOICES)
    random = np.random.default_rng(5)
    batches = random.permutation(np.arange(70, 120))
    for batch in batches.tolist():
        for k in (0, 1):
            counts = [k] * batch, [0] * batch
            length.observe(*counts, step_time_s=step_s(batch, k, in_pieces=k > 0))
    assert length.costs.curve(96, 96)[96] == pytest.approx(2.2, abs=0.2)


def test_steps_of_which_few_requests_have_drafts_emit_less() -> None:
    """In a batch of 64 the drafts of one gain next to nothing."""
    for with_drafts, is_drafted in ((64, True), (1, False)):
        length = BatchDraftLength((1, 3))
        drafted = 0
        for step in range(300):
            k = length.choose(64, with_drafts=with_drafts)
            drafted += k > 0 and step > 50
            verified = [k] * with_drafts + [0] * (64 - with_drafts)
            seconds = 0.005 * (1.1 if k else 1.0)
            length.observe(verified, verified, step_time_s=seconds)
        assert (drafted > 200) == is_drafted, (with_drafts, drafted)


def test_only_lengths_that_are_allowed_are_chosen() -> None:
    length = BatchDraftLength(CHOICES)
    chosen = set()
    for _ in range(200):
        k = length.choose(4, lambda each: each in (3, 15))
        chosen.add(k)
        length.observe([k] * 4, [k] * 4, step_time_s=0.005)
    assert chosen - {0} == {3, 15}
    assert length.choose(4, lambda _: False) == 0


def test_long_drafts_where_tokens_are_right_and_cheap() -> None:
    length = BatchDraftLength(CHOICES)
    lengths, speed = serve(length, batch=8, steps=400, right=0.9, token_cost=0.01)
    assert np.median(lengths[100:]) >= 7
    assert speed > 4.0
    assert length.survival()[:3] == pytest.approx([0.9, 0.81, 0.73], abs=0.08)


def test_short_drafts_where_tokens_are_dear() -> None:
    lengths, speed = serve(
        BatchDraftLength(CHOICES), batch=32, steps=400, right=0.7, token_cost=0.25
    )
    assert 1 <= np.median(lengths[50:]) <= 3
    assert speed > 1.15


@pytest.mark.parametrize("batch", [8, 32, 128])
def test_no_drafts_within_a_few_steps_where_none_are_right(batch: int) -> None:
    cold = BatchDraftLength(CHOICES)
    lengths, speed = serve(cold, batch=batch, steps=400, right=0.02, token_cost=0.05)
    assert sum(lengths[:20]) <= 24, "few, and short"
    assert sum(k > 0 for k in lengths[40:]) <= 60
    assert speed > 0.99


def test_it_falls_back_from_warm_to_cold_and_returns() -> None:
    length = BatchDraftLength(CHOICES)
    serve(length, batch=32, steps=300, right=0.9, token_cost=0.02)
    cold, _ = serve(length, batch=32, steps=200, right=0.005, token_cost=0.02, seed=1)
    assert sum(cold[20:]) <= 2 * len(cold) // 8
    warm, _ = serve(length, batch=32, steps=200, right=0.9, token_cost=0.02, seed=2)
    assert np.median(warm[60:]) >= 7


@pytest.mark.parametrize(("batch", "soon"), [(1, 14), (2, 10), (4, 8), (8, 6)])
@pytest.mark.parametrize("seed", range(4))
def test_a_small_batch_that_turns_cold_drafts_little_within_a_few_steps(
    batch: int, soon: int, seed: int
) -> None:
    """Where a token costs little, it takes many that are wrong until it does not pay any more."""
    length = BatchDraftLength(CHOICES)
    warm, _ = serve(length, batch=batch, steps=400, right=0.85, token_cost=0.01, seed=seed)
    assert np.median(warm[100:]) >= 7, "the test could not fail"
    cold, speed = serve(length, batch=batch, steps=300, right=0.0, token_cost=0.01, seed=9 + seed)
    assert np.mean(cold[soon:100]) < 0.5
    assert speed > 0.985


@pytest.mark.parametrize("batch", [1, 4])
def test_a_small_batch_that_turns_warm_is_drafted_for_within_a_few_steps(batch: int) -> None:
    length = BatchDraftLength(CHOICES)
    serve(length, batch=batch, steps=300, right=0.9, token_cost=0.01)
    serve(length, batch=batch, steps=300, right=0.0, token_cost=0.01, seed=1)
    warm, _ = serve(length, batch=batch, steps=100, right=0.9, token_cost=0.01, seed=2)
    assert np.median(warm[30:]) >= 7


@pytest.mark.parametrize("right", [0.3, 0.5, 0.9])
def test_traffic_that_stays_as_it_is_is_not_forgotten(right: float) -> None:
    """Chance alone seldom looks like a change."""
    length = BatchDraftLength((1,))
    random = np.random.default_rng(3)
    far_off = 0
    for step in range(3000):
        length.observe([1], [int(random.random() < right)])
        far_off += step > 200 and abs(length.survival()[0] - right) > 0.3
    assert far_off < 100


def test_new_requests_are_tried_sooner() -> None:
    tried = []
    for is_told in (False, True):
        length = BatchDraftLength((4,))
        serve(length, batch=16, steps=300, right=0.0, token_cost=0.05)
        while length.choose(16) == 0:  # a try, from which on the next one is waited for
            length.observe([0] * 16, [0] * 16)
        length.observe([4] * 16, [0] * 16)
        steps = 0
        while length.choose(16) == 0 and steps < 1000:
            steps += 1
            if is_told:
                length.note_new_requests(4)
            length.observe([0] * 16, [0] * 16)
        tried.append(steps)
    assert tried[1] < tried[0]


def test_a_request_without_drafts_says_nothing() -> None:
    length = BatchDraftLength((2,))
    before = length.survival()
    length.observe([0, 0], [0, 0])
    assert length.survival().tolist() == before.tolist()
    length.observe([2, 0], [2, 0])
    assert (length.survival() > before).all()


def test_no_length_for_an_empty_batch_and_the_shortest_at_first() -> None:
    length = BatchDraftLength(CHOICES)
    assert length.choose(0) == 0
    assert length.choose(64) == 1  # 64 tokens: more were never tried


@pytest.mark.parametrize("choices", [(), (0, 1), (2, 1), (1, 1)])
def test_choices_are_checked(choices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="choices: expected rising lengths above 0"):
        BatchDraftLength(choices)


@pytest.mark.parametrize("max_num_seqs", [1, 2, 3, 6, 7, 256])
def test_the_schedule_names_every_length_once(max_num_seqs: int) -> None:
    schedule = capture_schedule(CHOICES, max_num_seqs, longest=8)
    assert schedule[0][0] == 1
    assert schedule[-1][1:] == (max_num_seqs, 0)
    assert all(a[1] + 1 == b[0] for a, b in pairwise(schedule))
    lengths = [length for _, _, length in schedule]
    longest = [7, 3, 1]
    assert lengths == [*longest[: max_num_seqs - 1], 0]


def test_a_time_that_no_clock_says_is_not_counted() -> None:
    length = BatchDraftLength([1, 3, 7, 15])
    for seconds in (0.0, -1.0, math.nan):
        for drafts_follow in (False, True):
            length.observe([0] * 4, [0] * 4, step_time_s=seconds, drafts_follow=drafts_follow)
    assert length.budget.undrafted_s(4) is None
