"""What drafts may lose is bounded, whatever they are chosen by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.spec.lengths.draft_budget import (
    FIRST,
    MOST,
    MOST_A_STEP,
    NEW_BATCH,
    RESUME,
    SHARE,
    DraftBudget,
)

STEP_S = 0.005
IN_FLIGHT = 2


@given(
    st.lists(
        st.tuples(st.booleans(), st.floats(1.0, 3.0), st.floats(0.5, MOST_A_STEP)), max_size=300
    )
)
def test_nothing_that_is_tried_loses_more_than_the_share_and_the_bound(
    steps: list[tuple[bool, float, float]],
) -> None:
    """Each: whether drafts are wanted, what it emits, how long it takes. What a step came to is
    known two steps later. So it is over any stretch, and over the first steps it is less."""
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    lost = least_lost = 0.0
    unseen: list[tuple[bool, float, float]] = []
    for wants_drafts, emitted, takes in steps:
        has_drafts = wants_drafts and budget.allows_drafts()
        unseen.append((has_drafts, emitted, takes) if has_drafts else (False, 1.0, 1.0))
        lost += (1.0 - SHARE) * unseen[-1][2] - unseen[-1][1]
        least_lost = min(least_lost, lost)
        if len(unseen) > IN_FLIGHT:
            was_drafted, came, took = unseen.pop(0)
            if was_drafted:
                budget.note_drafted(8, emitted=came, seconds=took * STEP_S)
            else:
                budget.note_undrafted(8, took * STEP_S)
        sent_too_late = (IN_FLIGHT + 1) * (MOST_A_STEP - 1.0)
        assert lost - least_lost <= MOST + sent_too_late + 1e-6
        assert lost <= FIRST + sent_too_late + 1e-6


def test_drafts_that_lose_end_and_come_back_seldom() -> None:
    budget = DraftBudget()
    budget.note_undrafted(128, STEP_S)
    drafted = []
    for _ in range(1000):
        drafted.append(budget.allows_drafts())
        if drafted[-1]:
            budget.note_drafted(128, emitted=1.6, seconds=2.0 * STEP_S)
        else:
            budget.note_undrafted(128, STEP_S)
    assert all(drafted[:3]), "there is something to try with"
    assert sum(drafted[100:]) <= 0.03 * len(drafted)
    assert sum(drafted[200:]) > 0, "it is tried again"


def test_drafts_that_gain_never_end() -> None:
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    for step in range(300):
        # Half of the steps have nothing right, and cost a third more.
        budget.note_drafted(8, emitted=1.0 + 1.5 * (step % 2), seconds=1.3 * STEP_S)
        assert budget.allows_drafts()
    assert budget.left >= MOST - 0.5


def test_gains_of_the_past_buy_little() -> None:
    budget = DraftBudget()
    budget.note_undrafted(1, STEP_S)
    for _ in range(1000):
        budget.note_drafted(1, emitted=8.0, seconds=STEP_S)
    wrong = 0
    while budget.allows_drafts():
        budget.note_drafted(1, emitted=1.0, seconds=1.1 * STEP_S)
        wrong += 1
    expected = (MOST - FIRST) / 0.1 + FIRST / (0.1 - 1.1 * SHARE)
    assert wrong == pytest.approx(expected, abs=1)


def test_a_step_that_was_held_up_counts_as_a_long_one() -> None:
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    budget.note_drafted(8, emitted=1.0, seconds=5.0)
    assert budget.left == pytest.approx(FIRST + 1.0 - MOST_A_STEP)
    budget.note_undrafted(8, 5.0)
    assert budget.undrafted_s(8) == STEP_S


def test_steps_that_are_held_up_now_and_then_end_no_drafts_that_gain() -> None:
    random = np.random.default_rng(0)
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    drafted = 0
    for step in range(2000):
        is_allowed = budget.allows_drafts()
        held_up = 5.0 if step % 200 == 150 else float(np.exp(random.normal(0, 0.03)))
        if is_allowed:
            budget.note_drafted(8, emitted=1.5, seconds=1.2 * STEP_S * held_up)
        else:
            budget.note_undrafted(8, STEP_S * held_up)
        drafted += is_allowed
    assert drafted >= 0.95 * 2000


def test_one_request_may_have_drafts_from_one_passage_that_is_known_to_the_next() -> None:
    """25 tokens that no draft has right, and 25 that come in three steps."""
    budget = DraftBudget()
    budget.note_undrafted(1, STEP_S)
    drafted = 0
    for step in range(1400):
        is_allowed = budget.allows_drafts()
        if is_allowed:
            emitted = 8.0 if step % 28 < 3 else 1.0
            budget.note_drafted(1, emitted=emitted, seconds=1.17 * STEP_S)
        else:
            budget.note_undrafted(1, STEP_S)
        drafted += is_allowed
    assert drafted >= 0.95 * 1400


def test_a_step_without_drafts_that_was_held_up_hides_no_loss_for_long() -> None:
    """Some step is the first that is measured."""
    budget = DraftBudget()
    budget.note_undrafted(8, 3.0 * STEP_S)
    for _ in range(3):
        for _ in range(8):
            budget.note_drafted(8, emitted=1.0, seconds=1.5 * STEP_S)
        budget.note_undrafted(8, STEP_S)
    assert not budget.allows_drafts()


@pytest.mark.parametrize("batch", [2, 98])
def test_steps_of_many_more_requests_wait_for_one_of_theirs(batch: int) -> None:
    """98 requests take longer than 8, drafts or none; with the 2 that are left it is the other
    way round."""
    step_s = STEP_S * (1.5 if batch > 8 else 0.7)
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    for _ in range(4):
        assert not budget.needs_undrafted(batch)
        budget.note_drafted(batch, emitted=1.2, seconds=1.1 * step_s)
        assert budget.left == FIRST
    assert budget.needs_undrafted(batch)
    budget.note_undrafted(batch, step_s)
    assert not budget.needs_undrafted(batch)
    assert budget.left == pytest.approx(FIRST + 4 * 0.1)
    budget.note_drafted(round(1.2 * batch), emitted=1.0, seconds=2.0 * step_s)
    assert budget.left < 1.0, "about as many"


@pytest.mark.parametrize(("emitted", "share"), [(1.2, 0.05), (1.8, 0.9)])
@pytest.mark.parametrize("batch", [4, 128])
def test_drafts_are_held_against_steps_that_prefill_as_much(
    batch: int, emitted: float, share: float
) -> None:
    """Where requests are short and many, every step prefills: then drafts that lose end, and drafts
    that gain do not, though a prompt takes far more than they do."""
    random = np.random.default_rng(1)
    budget = DraftBudget()
    drafted = rests = 0
    for step in range(1000):
        has_drafts = budget.allows_drafts() and not budget.needs_undrafted(batch)
        num_tokens = int(random.integers(50, 1500))
        seconds = (1.4 if has_drafts else 1.0) * STEP_S + 0.002 + 13e-6 * num_tokens
        seconds *= float(np.exp(random.normal(0, 0.02)))
        if has_drafts:
            budget.note_drafted(batch, emitted=emitted, seconds=seconds, prefilled=num_tokens)
        else:
            budget.note_undrafted(batch, seconds, prefilled=num_tokens)
            rests += budget.allows_drafts()
        drafted += has_drafts and step >= 100
    assert drafted / 900 == pytest.approx(share, abs=0.1)
    assert budget.undrafted_s(batch) is None
    assert rests > 4, "what they are held against is measured again"


def test_small_prompts_say_nothing_of_long_ones() -> None:
    """By noise alone a line through small prompts may have long ones take no time."""
    budget = DraftBudget()
    for step in range(8):
        budget.note_undrafted(
            8, STEP_S * (1.2 - 0.1 * (step % 2)), prefilled=100 + 100 * (step % 2)
        )
    long = {"seconds": 8 * STEP_S, "prefilled": 8000}
    for _ in range(200):
        if budget.allows_drafts() and not budget.needs_undrafted(8):
            budget.note_drafted(8, emitted=1.5, **long)
        else:
            budget.note_undrafted(8, **long)
    assert budget.allows_drafts()
    assert budget.left > FIRST


def test_what_waits_for_a_batch_that_is_gone_waits_until_as_many_come_back() -> None:
    """98 requests end before a step of theirs without drafts was measured: against one of 8 their
    drafts would have lost, whatever they gained."""
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    for _ in range(4):
        budget.note_drafted(98, emitted=1.3, seconds=1.5 * STEP_S)
    budget.note_undrafted(8, STEP_S)
    assert budget.left == FIRST
    assert not budget.needs_undrafted(8)
    assert budget.needs_undrafted(98), "at once"
    budget.note_undrafted(98, 1.25 * STEP_S)
    assert budget.left == pytest.approx(FIRST + 4 * 0.1)
    assert not budget.needs_undrafted(98)


def test_no_more_is_owed_than_is_saved_up() -> None:
    """However many steps waited."""
    budget = DraftBudget()
    for _ in range(100):
        budget.note_drafted(98, emitted=1.0, seconds=2.0 * STEP_S)
    budget.note_undrafted(98, STEP_S)
    assert budget.left == -MOST
    steps = 0
    while not budget.allows_drafts():
        budget.note_undrafted(98, STEP_S)
        steps += 1
    assert steps == pytest.approx((MOST + RESUME) / SHARE, rel=0.01)


def test_new_requests_are_worth_a_try_but_not_any_number_of_tries() -> None:
    budget = DraftBudget()
    budget.note_undrafted(4, STEP_S)
    while budget.allows_drafts():
        budget.note_drafted(4, emitted=1.0, seconds=1.5 * STEP_S)
    batches = 0.0
    while not budget.allows_drafts():
        budget.note_new_requests(0.5)
        batches += 0.5
    assert batches >= RESUME / NEW_BATCH
    left = budget.left
    budget.note_new_requests(100.0)
    assert budget.left == left, "there is enough"


def test_what_comes_before_a_step_without_drafts_is_counted_with_it() -> None:
    budget = DraftBudget()
    for _ in range(4):
        budget.note_drafted(64, emitted=1.0, seconds=1.5 * STEP_S)
    assert budget.left == FIRST
    budget.note_undrafted(64, STEP_S)
    assert budget.left == pytest.approx(FIRST - 4 * (0.5 - 1.5 * SHARE), abs=0.02)
    assert not budget.allows_drafts()


def test_steps_without_drafts_are_known_between_what_was_measured() -> None:
    budget = DraftBudget()
    assert budget.undrafted_s(8) is None
    budget.note_drafted(8, emitted=1.0, seconds=1.0)
    assert budget.allows_drafts(), "nothing is known that it could be compared with"
    for batch, seconds in ((8, 0.005), (128, 0.007), (32, 0.0054)):
        budget.note_undrafted(batch, seconds)
    known = [budget.undrafted_s(batch) for batch in (1, 8, 20, 32, 80, 128, 500)]
    assert np.array(known, float) == pytest.approx(
        [0.005, 0.005, 0.0052, 0.0054, 0.0062, 0.007, 0.007]
    )
