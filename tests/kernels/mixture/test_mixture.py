"""Drafting by the mixture, by its definition: near answers' rows, what is drafted, what is kept."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from reprise.kernels.draft.constants import CONTEXT, CORPUS, NEAR_ANSWER
from reprise.kernels.mixture.layout import LEAST_CHANCE, MAX_NEAR, NUM_CHOICE, NUM_MIXTURE
from reprise.kernels.mixture.near import lay_out_near
from reprise.kernels.mixture.near_rows import near_rows
from reprise.kernels.mixture.state import TAG_FIRST, MixtureState


@pytest.fixture(params=["cpu"])
def device():
    return torch.device("cpu")


def test_rows_of_near_answers_say_what_the_definition_says():
    draw = random.Random(2)
    for _ in range(20):
        vocab = draw.choice((4, 50, 9000))
        number = draw.randrange(MAX_NEAR + 1)

        def some(most, vocab=vocab):
            return [draw.randrange(vocab) for _ in range(draw.randrange(1, most))]

        near, prompts, own = (
            [some(30) for _ in range(number)],
            [some(9) for _ in range(number)],
            some(9),
        )
        similarities = [draw.random() for _ in near]
        clauses = [draw.randrange(3) for _ in near]
        expected = lay_out_near(near, prompts, similarities, clauses, own_prompt=own)
        found = near_rows(
            [np.array(one, np.int32) for one in near],
            [np.array(one, np.int32) for one in prompts],
            similarities,
            clauses,
            own_prompt=np.array(own, np.int32),
            max_near_tokens=1000,
        )
        assert found.token_ids.tolist() == expected.token_ids
        columns = found.info.reshape(-1, 4).T.tolist()
        assert columns == [
            list(each)
            for each in (expected.starts, expected.similarities, expected.ranks, clauses)
        ]  # fmt: skip
        tags, seen = [], set()
        for token, tag in zip(expected.token_ids, expected.tags, strict=True):
            is_first = token >= 0 and (tag % 256, token) not in seen
            seen.add((tag % 256, token))
            tags.append(tag + TAG_FIRST * is_first)
        assert found.tags.tolist() == tags


def test_rows_are_cut_to_what_fits():
    answers = [np.full(9, k, np.int32) for k in range(MAX_NEAR + 4)]
    nothing = np.zeros(0, np.int32)

    def rows(room):
        return near_rows(
            answers, [nothing] * 20, [0.9] * 20, [0] * 20, own_prompt=nothing, max_near_tokens=room
        )

    assert len(rows(1000).info) == MAX_NEAR
    cut = rows(16)
    assert cut.token_ids.tolist() == [-2, *[0] * 9, -1, -2, 1, 1, 1, -1]
    assert len(cut.tags) == 16
    assert len(rows(2).token_ids) == 0


def test_each_source_is_drafted_from(make_mixed):
    world = make_mixed(max_draft=3)
    row = world.put_corpus("a", [[1, 2, 3, 4]])
    world.begin_mixed(0, [9, 8], [7, 6], near=[[7, 6, 5, 4, 3]])
    world.begin_mixed(1, [9], [1, 2], corpus_row=row)
    world.begin_mixed(2, [5, 6, 7], [5, 6])
    drafts, chances = world.draft([0, 1, 2])
    assert drafts[:, 0].tolist() == [5, 3, 7]
    assert (chances[:, 0] > 0).all()
    assert world.sources([0, 1, 2]) == [NEAR_ANSWER, CORPUS, CONTEXT]


def test_a_draft_ends_where_it_is_hardly_right(make_mixed):
    world = make_mixed(max_draft=8, max_model_len=200)
    draw = random.Random(3)
    world.begin_mixed(0, [draw.randrange(3) for _ in range(90)], [0, 1, 2])
    _, chances = world.draft([0])
    number = int((chances > 0).sum())
    right = chances[0].cumprod(0)
    assert number < 8, "the test could not fail"
    assert right[number - 1] < LEAST_CHANCE <= right[number - 2]


def test_a_request_without_evidence_repeats_its_last_token(make_mixed):
    world = make_mixed(max_draft=3)
    world.begin_mixed(2, [5, 6], [1, 2])
    world.begin_mixed(1, [5, 6], [])
    drafts, chances = world.draft([2, -1, 0, 1], wanted=[True, True, True, False])
    assert drafts[:, 0].tolist() == [2, 0, 0, 6]
    assert (drafts == drafts[:, :1]).all()
    assert not chances.any()
    assert world.sources([2]) == [-1]
    assert world.draft([])[0].shape == (0, 3)


def test_a_slot_that_another_request_took_is_not_gone_on_with(make_mixed):
    worlds = [make_mixed(max_draft=3) for _ in range(2)]
    near = [[7, 6, 5, 4, 3, 2, 1]]
    worlds[0].begin_mixed(0, [9], [7, 6, 5, 4], near=[[1, 2, 7, 6, 5, 4, 7, 7, 7]])
    worlds[0].draft([0])
    drafted = []
    for world in worlds:
        world.begin_mixed(0, [9], [7, 6], near=near)
        drafted.append(world.draft([0]))
    assert torch.equal(drafted[0][1], drafted[1][1])
    assert torch.equal(worlds[0].mixture.pointers[0], worlds[1].mixture.pointers[0])


def test_tokens_of_another_namespace_hash_elsewhere(make_mixed):
    world = make_mixed(max_draft=1)
    for slot, salt in enumerate((1, 1, 0xDEADBEEF)):
        world.begin_mixed(slot, [9, 8], [7, 6], near=[[7, 6, 5, 4]], salt=salt)
    chances = world.draft([0, 1, 2])[1][:, 0].tolist()
    assert chances[0] == chances[1] != chances[2]


def test_weights_of_other_tables_are_refused():
    with pytest.raises(ValueError, match=rf"weights \[{NUM_MIXTURE}\] and \[{NUM_CHOICE}\]"):
        MixtureState.create(
            mixture_weights=np.zeros(3, np.float32),
            choice_weights=np.zeros(NUM_CHOICE, np.float32),
            num_slots=1, max_draft=1, max_near_tokens=8,
        )  # fmt: skip


def test_arguments_that_do_not_fit_are_refused(make_mixed):
    world = make_mixed(max_draft=3)
    with pytest.raises(ValueError, match="drafts of up to 3 tokens, came 4"):
        world.draft([0], length=4)
    with pytest.raises(ValueError, match="backend"):
        world.draft([0], backend="cuda")


def test_memory_is_stated(make_mixed):
    mixture = make_mixed().mixture
    assert mixture.num_bytes > 4 * (NUM_MIXTURE + NUM_CHOICE)
