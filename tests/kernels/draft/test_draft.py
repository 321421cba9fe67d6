"""What is drafted, by the definition: sources, marks, chances, learning, and checked arguments."""

from __future__ import annotations

import pytest
import torch

from reprise.kernels.draft.constants import (
    AGREEMENTS,
    CONTEXT,
    CORPUS,
    MAX_MATCH,
    MAX_TRIES,
    NEAR_ANSWER,
    RECENT,
    VOTED,
    VOTING_PLACES,
    match_bucket,
)
from reprise.kernels.draft.state import (
    PENDING_COPY,
    PENDING_ROWS,
    PENDING_SOURCE,
    DraftState,
    worths_of,
)


@pytest.fixture(params=["cpu"])
def device():
    return torch.device("cpu")


def source_of(world, slot=0):
    return int(world.state.pending[slot, PENDING_SOURCE])


def test_a_near_answer_is_copied_from_its_longest_match_to_its_end(make_world):
    world = make_world()
    world.begin(0, [9, 9], [1, 2], near=[[2, 7, 7], [1, 2, 3, 4], [1, 2, 5, 6]])
    drafts, chances = world.draft([0])
    assert drafts.tolist() == [[3, 4, 2, 2, 2, 2, 2, 2]]  # then the last token
    assert source_of(world) == NEAR_ANSWER
    # BOS, 1, 2; most vote for that as well
    cells = world.state.hit_chances[NEAR_ANSWER, match_bucket(3), 1]
    assert torch.equal(chances[0], torch.cat((cells[:2], torch.zeros(6))))


def test_the_beginning_of_an_answer_counts_as_a_token(make_world):
    world = make_world()
    world.begin(0, [9, 8], [1], near=[[8, 1, 5], [1, 6]])
    assert world.draft([0])[0][0, :1].tolist() == [6]
    # and nothing before it: the prompt's 8 is not in the answer
    world.begin(0, [9, 8], [1], near=[[8, 1, 5]])
    assert world.draft([0])[0][0, :1].tolist() == [5]
    assert int(world.state.pending[0, PENDING_ROWS + NEAR_ANSWER]) // AGREEMENTS == 1


def test_the_context_is_copied_from_its_last_match_and_goes_on_into_itself(make_world):
    world = make_world()
    world.begin(0, [5, 6, 7], [1, 2, 1, 2])
    assert world.draft([0])[0].tolist() == [[1, 2, 1, 2, 1, 2, 1, 2]]
    assert source_of(world) == CONTEXT


def test_a_copy_of_the_prompt_ends_with_the_prompt(make_world):
    world = make_world()
    world.begin(0, [4, 5, 6, 7], [8, 5])
    assert world.draft([0])[0].tolist() == [[6, 7, 5, 5, 5, 5, 5, 5]]
    world.begin(0, [4, 5], [8, 5])  # the prompt's end has no successor
    assert world.draft([0])[1].tolist() == [[0.0] * 8]


def test_a_copy_ends_before_what_is_no_token_of_the_vocabulary(make_world):
    world = make_world()
    world.begin(0, [4, 5, 6, 9, 7], [8, 5])  # the prompt's 9 stands for a part of an image
    assert world.draft([0])[0].tolist() == [[6, 9, 7, 5, 5, 5, 5, 5]]
    drafts, chances = world.draft([0], vocab_size=9)
    assert drafts.tolist() == [[6, 5, 5, 5, 5, 5, 5, 5]]
    assert int((chances > 0).sum()) == 1
    world.emit(0, [6])
    drafts, chances = world.draft([0], vocab_size=9)
    assert drafts.tolist() == [[6] * 8]
    assert not chances.any()


def test_the_corpus_gives_the_commonest_successor_and_of_its_places_the_last(make_world):
    world = make_world()
    row = world.put_corpus("a", [[1, 2, 3, 4], [1, 2, 5, 6], [7, 2, 5, 8], [2, 9]])
    world.begin(0, [0], [3, 2], corpus_row=row)
    assert world.draft([0])[0][0, :2].tolist() == [5, 8]
    assert source_of(world) == CORPUS


def test_removed_answers_are_not_drafted_and_found_past(make_world):
    world = make_world()
    answers = [[1, 2, 3, 4], [8, 2, 5, 6]]
    row = world.put_corpus("a", answers, removed=[0])
    world.begin(0, [0], [1, 2], corpus_row=row)
    assert world.draft([0])[0][0, :2].tolist() == [5, 6]


def test_recent_answers_are_searched_and_the_last_match_wins(make_world):
    world = make_world()
    row = world.put_corpus("a", [[1, 9]], recent=[[4, 1, 2, 3], [4, 1, 2, 6], [1, 7]])
    world.begin(0, [0], [0, 4, 1], corpus_row=row)
    assert world.draft([0])[0][0, :2].tolist() == [2, 6]
    assert source_of(world) == RECENT


def test_the_copy_that_is_worth_most_is_taken(make_world):
    world = make_world()
    row = world.put_corpus("a", [[0, 1, 2, 3]])
    world.begin(0, [0], [0, 1], near=[[0, 1, 4]], corpus_row=row)
    assert world.draft([0])[0][0, 0] == 4  # of equal worths the first one
    world.state.hit_worths[CORPUS, match_bucket(3), 0] += 0.01
    assert world.draft([0])[0][0, 0] == 2


def test_a_copy_is_worth_what_is_expected_of_its_first_tokens(make_world):
    state = make_world().state
    chances = state.hit_chances[CORPUS, match_bucket(3), 1].tolist()
    expected, survival = 0.0, 1.0
    for chance in chances[:8]:
        survival *= chance
        expected += survival
    assert float(state.hit_worths[CORPUS, match_bucket(3), 1]) == pytest.approx(expected)


def test_how_many_other_copies_begin_alike_is_told_apart(make_world):
    world = make_world()
    row = world.put_corpus("a", [[0, 1, 4, 9]])
    world.begin(0, [0], [0, 1], near=[[0, 1, 4, 5]], corpus_row=row)
    world.draft([0])
    rows = world.state.pending[0, PENDING_ROWS:].tolist()
    agreements = [row % AGREEMENTS for row in rows]
    assert [agreements[kind] for kind in (NEAR_ANSWER, CORPUS, VOTED)] == [2, 2, 2]
    assert [agreements[kind] for kind in (CONTEXT, RECENT)] == [0, 0]


def test_most_votes_choose_a_token_and_its_longest_match_the_copy(make_world):
    world = make_world()
    near = [[8, 2, 4, 0], [9, 2, 4, 5], [1, 2, 4, 6], [7, 1, 2, 3], [6, 2, 4]]
    world.begin(0, [0], [7, 1, 2], near=near)
    world.draft([0])
    assert world.state.pending_token_ids[0, NEAR_ANSWER, :1].tolist() == [3]
    assert world.state.pending_token_ids[0, VOTED, :2].tolist() == [4, 6]
    world.state.hit_worths[VOTED] += 1.0
    assert world.draft([0])[0][0, :2].tolist() == [4, 6]
    pending = world.state.pending[0]
    assert pending[[PENDING_COPY, PENDING_SOURCE]].tolist() == [VOTED, NEAR_ANSWER]


def test_the_context_votes_too_and_what_it_gives_counts_as_its_own(make_world):
    world = make_world()
    world.begin(0, [2, 4, 5, 2, 4, 5], [2], near=[[8, 2, 3]])
    world.state.hit_worths[VOTED] += 1.0
    assert world.draft([0])[0][0, :2].tolist() == [4, 5]
    assert source_of(world) == CONTEXT
    world.emit(0, [4, 5])
    world.draft([0])
    assert world.state.totals.tolist() == [[2, 2], [0, 0], [0, 0], [0, 0]]


@pytest.mark.parametrize("tokens", [[6, 7, 9, 1], [6, 7, 1], [6, 7, 8, 9, 1]])
def test_a_match_that_goes_on_beyond_a_difference_is_preferred(make_world, tokens):
    """One token is another, is missing, or is too many."""
    world = make_world()
    world.begin(0, [0], [6, 7, 8, 1], near=[[5, 5, 5, 1, 2], [*tokens, 3], [5, 5, 5, 1, 4]])
    assert world.draft([0])[0][0, 0] == 3


def test_so_many_places_vote_at_most(make_world):
    world = make_world(max_model_len=256, max_near=512)
    near = [[1, 2]] * VOTING_PLACES + [[1, 3]] * 60
    world.begin(0, [0], [9, 1], near=near)
    world.draft([0])
    assert world.state.pending_token_ids[0, VOTED, 0] == 2
    world.begin(1, [1, 3] * 60 + [1, 2] * VOTING_PLACES, [9, 1])
    world.draft([1])
    assert world.state.pending_token_ids[1, VOTED, 0] == 2


def test_what_became_of_every_source_is_counted_up_to_its_first_wrong_token(make_world):
    world = make_world()
    row = world.put_corpus("a", [[1, 2, 3, 3]])
    world.begin(0, [0], [1], near=[[1, 2, 4, 5, 6]], corpus_row=row)
    before = world.state.hit_counts.clone()
    world.draft([0], length=4)
    world.emit(0, [2, 4, 7])
    world.draft([0])
    new = world.state.hit_counts - before
    bucket = match_bucket(2)
    assert new[NEAR_ANSWER, bucket, 2, :4].tolist() == [[1, 1], [1, 1], [1, 0], [0, 0]]
    assert new[CORPUS, bucket, 2, :4].tolist() == [[1, 1], [1, 0], [0, 0], [0, 0]]
    assert torch.equal(new[VOTED], new[NEAR_ANSWER])
    assert new.sum() == 5 + 3 + 5
    assert world.state.totals.tolist() == [[0, 0], [3, 2], [0, 0], [0, 0]]
    assert torch.equal(
        world.state.hit_chances, world.state.hit_counts[..., 1] / world.state.hit_counts[..., 0]
    )
    assert torch.equal(world.state.hit_worths, worths_of(world.state.hit_chances))


def test_counts_start_as_if_longer_matches_had_been_right_more_often(make_world):
    state = make_world().state
    chances = state.hit_chances
    assert torch.equal(chances, state.hit_counts[..., 1] / state.hit_counts[..., 0])
    assert bool((chances.diff(dim=1) >= 0).all())  # with the match
    assert bool((chances.diff(dim=3) >= 0).all())  # and with what was copied rightly since
    assert [match_bucket(n) for n in (0, 1, 4, 5, 6, 7, 12, 13, 16, 40)] == [
        0, 1, 4, 5, 5, 6, 7, 8, 9, 9,
    ]  # fmt: skip


def test_a_slot_that_another_request_took_teaches_nothing(make_world):
    world = make_world()
    world.begin(0, [0], [1], near=[[1, 2, 4, 5, 6]])
    world.draft([0])
    before = world.state.hit_counts.clone()
    world.begin(0, [0, 0], [3, 2, 4])
    world.draft([0])
    assert torch.equal(world.state.hit_counts, before)


def test_counts_fade_to_a_bounded_weight(make_world):
    world = make_world()
    world.begin(0, [0], [1], near=[[1, 2]])
    cell = (NEAR_ANSWER, match_bucket(2), 1, 0)
    world.state.hit_counts[cell] = torch.tensor([MAX_TRIES, MAX_TRIES])
    for _ in range(3):
        world.draft([0])
        world.begin(0, [0], [1], near=[[1, 2]])
        world.draft([0])
        world.emit(0, [3])
        world.draft([0])
        world.begin(0, [0], [1], near=[[1, 2]])
    tries, hits = world.state.hit_counts[cell].tolist()
    assert tries == MAX_TRIES
    assert hits == pytest.approx(MAX_TRIES - 3, abs=0.01)


def test_rows_without_a_draft_repeat_the_last_token_with_chance_0(make_world):
    world = make_world()
    world.begin(2, [5, 6], [1, 1, 1])
    world.begin(1, [5, 6], [])
    drafts, chances = world.draft([2, -1, 0, 1], wanted=[False, True, True, True])
    assert drafts[:, 0].tolist() == [1, 0, 0, 6]
    assert bool((drafts == drafts[:, :1]).all())
    assert not chances.any()
    empty = world.draft([])
    assert empty[0].shape == (0, 8)


def test_nothing_is_drafted_beyond_the_longest_context(make_world):
    world = make_world(max_model_len=8)
    world.begin(0, [5], [1, 2, 1, 2, 1])
    drafts, chances = world.draft([0])
    assert drafts.tolist() == [[2, 1, 1, 1, 1, 1, 1, 1]]
    assert (chances > 0).tolist() == [[True, True] + [False] * 6]
    world.emit(0, [2, 1])
    assert world.draft([0])[1].tolist() == [[0.0] * 8]


def test_matches_longer_than_the_longest_are_not_told_apart(make_world):
    world = make_world()
    tokens = list(range(MAX_MATCH + 2))
    world.begin(0, [99], tokens, near=[[*tokens[1:], 50], [*tokens, 60]])
    assert world.draft([0])[0][0, 0] == 50


def test_arguments_that_do_not_fit_are_refused(make_world):
    world = make_world()
    with pytest.raises(ValueError, match="drafts of up to 8 tokens, came 9"):
        world.draft([0], length=9)
    world.total_len = world.total_len.long()
    with pytest.raises(ValueError, match=r"expected total_len \[4\] of torch.int32"):
        world.draft([0])
    with pytest.raises(ValueError, match="backend"):
        make_world().draft([0], backend="cuda")
    with pytest.raises(ValueError, match="sizes of 1 and more"):
        DraftState.create(num_slots=0, max_draft=4)


def test_memory_is_stated(make_world):
    state = make_world().state
    assert state.num_bytes > 4 * (state.arena.numel() + state.near_token_ids.numel())
