"""What drafts may lose is bounded, whatever they are chosen by."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprise.spec.lengths.draft_budget import (
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
    known two steps later."""
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    value = spent = 0.0
    unseen: list[tuple[bool, float, float]] = []
    for wants_drafts, emitted, takes in steps:
        has_drafts = wants_drafts and budget.allows_drafts()
        unseen.append((has_drafts, emitted, takes) if has_drafts else (False, 1.0, 1.0))
        value += unseen[-1][1]
        spent += unseen[-1][2]
        if len(unseen) > IN_FLIGHT:
            was_drafted, came, took = unseen.pop(0)
            if was_drafted:
                budget.note_drafted(8, emitted=came, seconds=took * STEP_S)
            else:
                budget.note_undrafted(8, took * STEP_S)
        sent_too_late = (IN_FLIGHT + 1) * (MOST_A_STEP - 1.0)
        assert spent - value <= SHARE * spent + MOST + sent_too_late + 1e-6


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
    assert wrong == pytest.approx(MOST / (0.1 - 1.1 * SHARE), abs=1)


def test_a_step_that_was_held_up_counts_as_a_long_one() -> None:
    budget = DraftBudget()
    budget.note_undrafted(8, STEP_S)
    budget.note_drafted(8, emitted=1.0, seconds=5.0)
    assert budget.left == pytest.approx(MOST + SHARE * MOST_A_STEP + 1.0 - MOST_A_STEP, abs=0.01)
    budget.note_undrafted(8, 5.0)
    undrafted_s = budget.undrafted_s(8)
    assert undrafted_s is not None
    assert undrafted_s <= 1.21 * STEP_S


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
    assert budget.left == MOST
    budget.note_undrafted(64, STEP_S)
    assert budget.left == pytest.approx(MOST - 4 * (0.5 - 1.5 * SHARE))
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
