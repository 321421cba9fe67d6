"""The mixture's Triton kernel against its definition: all that is drafted and kept."""

from __future__ import annotations

import random

import pytest
import torch

from reprise.kernels.mixture import triton_mixture
from reprise.kernels.mixture.layout import MAX_NEAR
from reprise.kernels.mixture.near import CATCH_UP
from reprise.tests.kernels.draft_world import (
    answers,
    check_that_no_entry_leads_out,
    draft_at_random,
    some,
)

pytestmark = pytest.mark.gpu  # and in the interpreter, by test_interpreter.py

ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small blocks, so that what is scanned takes several."""
    if not ON_GPU:
        monkeypatch.setattr(triton_mixture, "BLOCK", 64)
        monkeypatch.setattr(triton_mixture, "PRESENCE_BLOCK", 64)
        monkeypatch.setattr(triton_mixture, "CHUNK", 64)


def begin_some(world, draw, slot, vocab, corpora):
    """A random request: any part of it may be missing."""
    longest = world.all_token_ids.shape[1]
    prompt = some(draw, draw.randrange(1, longest // 2), vocab)
    near = answers(draw, draw.randrange(MAX_NEAR + 3), 20, vocab) if draw.random() < 0.8 else []
    world.begin_mixed(
        slot,
        prompt,
        some(draw, draw.randrange(5), vocab),
        near=near,
        near_prompts=[some(draw, draw.randrange(6), vocab) for _ in near],
        similarities=[draw.random() for _ in near],
        clauses=[draw.choice((0, 0, 0, 1, 2)) for _ in near],
        corpus_row=draw.choice(corpora),
        salt=draw.choice((0, 2654435769)),
    )


@pytest.mark.parametrize(("vocab", "max_draft"), [(2, 3), (5, 5), (40, 16), (50257, 3)])
def test_random_requests_are_drafted_alike(make_mixed, vocab, max_draft):
    draw = random.Random(31 * vocab + max_draft)
    world = make_mixed(max_draft=max_draft, max_model_len=110, max_near=200, seed=vocab)
    given = draft_at_random(world, draw, vocab=vocab, steps=4, begin=begin_some)
    assert given > 0 or vocab > 1000


def test_one_request_none_and_nothing_at_all(make_mixed):
    world = make_mixed(num_slots=1, max_draft=2)
    world.draft_both([0])
    world.draft_both([])
    world.begin_mixed(0, [1], [])
    world.draft_both([0])
    world.begin_mixed(0, [], [5])
    world.draft_both([0])
    world.begin_mixed(0, [], [])
    world.draft_both([0])
    world.begin_mixed(0, [4, 4], [], near=[[4, 5, 4, 6]])
    assert world.draft_both([0])[1][0, 0] > 0  # from the answer's beginning


def test_ends_of_near_answers_and_equal_places(make_mixed):
    world = make_mixed(max_draft=4, max_near=400)
    world.begin_mixed(0, [9], [7], near=[[7]] * 16)
    world.draft_both([0])
    world.begin_mixed(1, [9], [4, 4], near=[[4] * 20] * 12)
    drafts, _ = world.draft_both([1, 0])
    assert drafts[0, 0] == 4


def test_a_thousand_answers_that_are_alike(make_mixed):
    world = make_mixed(max_model_len=100, max_draft=3)
    row = world.put_corpus("a", [[4, 4, 4, 4, 5]] * 1000, recent=[[4, 4]] * 60)
    world.begin_mixed(0, [4] * 40, [4] * 40, near=[[4] * 30] * 3, corpus_row=row)
    assert world.draft_both([0])[0][0, 0] == 4
    removed = world.put_corpus("b", [[4, 5, 6]] * 40, removed=list(range(0, 40, 2)))
    world.begin_mixed(1, [4], [4, 5], corpus_row=removed)
    assert world.draft_both([1])[0][0, 0] == 6


def test_more_successors_than_are_used(make_mixed):
    draw = random.Random(5)
    world = make_mixed(max_draft=2)
    distinct = [[1, 10 + k] for k in range(14)] + [[1, 10], [1, 12], [1, 12]]
    recent = [[1, 30], [1, 12], [1, 31], [1, 30]]
    few = world.put_corpus("few", distinct[:5], recent=recent)
    many = world.put_corpus("many", distinct, recent=recent)
    large = world.put_corpus("large", [[1, draw.randrange(2, 9), k] for k in range(200)])
    for slot, row in enumerate((few, many, large)):
        world.begin_mixed(slot, [0], [7, 1], corpus_row=row)
    world.draft_both([0, 1, 2])


def test_the_alignment_goes_on_where_the_draft_was_right(make_mixed):
    world = make_mixed(max_draft=4, max_model_len=80)
    answer = list(range(20, 50))
    near = [[*answer[:12], 60, 61, *answer[12:]], answer[::-1]]
    world.begin_mixed(0, [3, 4], answer[:1], near=near)
    at = 1
    # All of it right, none of it, a part, far behind, and the very end.
    for ahead in (1, 5, 2, CATCH_UP + 6, 3):
        world.draft_both([0])
        world.emit(0, answer[at : at + ahead])
        at += ahead
    drafts, _ = world.draft_both([0])
    world.emit(0, drafts[0].tolist())  # nothing is to be caught up with
    world.draft_both([0])


def test_shorter_drafts_are_the_beginnings_of_longer_ones(make_mixed):
    answer = list(range(20, 44))
    worlds = [make_mixed(max_draft=4, max_model_len=80) for _ in range(2)]
    for world in worlds:
        world.begin_mixed(0, [3, 4], answer[:2], near=[[*answer[:9], 60, *answer[9:]]])
    at = 2
    for length in (1, 4, 2, 3):
        full, full_chances = worlds[0].draft([0], backend="triton")
        drafts, chances = worlds[1].draft_both([0], length=length)
        assert torch.equal(drafts, full[:, :length])
        assert torch.allclose(chances, full_chances[:, :length], rtol=2e-4, atol=2e-5)
        for world in worlds:
            world.emit(0, answer[at : at + length + 1])
        at += length + 1


def test_near_answers_that_come_late(make_mixed):
    world = make_mixed(max_draft=3, max_model_len=80)
    answer = list(range(20, 50))
    world.begin_mixed(0, [3, 4], answer[:14])
    assert not world.draft_both([0])[1].any()
    world.emit(0, answer[14:15])
    world.attach(0, [3, 4], [answer])
    drafts, chances = world.draft_both([0])
    assert drafts[0].tolist()[: int((chances > 0).sum())] == answer[15:18]
    world.attach(0, [3, 4], [answer[::-1], answer])  # others, in the same step
    world.draft_both([0])


def test_a_full_context_has_no_room_for_drafts(make_mixed):
    world = make_mixed(max_model_len=20, max_draft=4)
    world.begin_mixed(0, [1, 2], [1] * 15)
    for _ in range(4):
        world.draft_both([0])
        world.emit(0, [1])
    assert int(world.total_len[0]) == 20
    assert not world.draft_both([0])[1].any()


def test_views_into_larger_tensors_are_read_in_place(make_mixed):
    world = make_mixed(max_draft=2)
    world.begin_mixed(1, [1, 2, 3], [7, 1], near=[[7, 1, 5]])
    expected = world.draft([0, 1], backend="torch")[0]
    wide = torch.full((4, 130), 3, dtype=torch.int32, device=world.all_token_ids.device)
    wide[:, 1:65] = world.all_token_ids
    world.all_token_ids = wide[:, 1:65]
    assert torch.equal(world.draft_both([0, 1])[0], expected)


def test_one_launch_whatever_is_drafted(make_mixed, monkeypatch):
    launched = []
    kernel = triton_mixture.mixture_kernel

    def spy(grid):
        launched.append(grid)
        return kernel[grid]

    monkeypatch.setattr(
        triton_mixture, "mixture_kernel", type("Spy", (), {"__getitem__": staticmethod(spy)})()
    )
    world = make_mixed(max_draft=2)
    world.draft([0, 1], backend="triton")
    world.begin_mixed(0, [9], [1, 2], near=[[1, 2, 3]])
    world.draft([0, 1], backend="triton")
    assert launched == [(2,)] * 2


def test_no_suffix_array_leads_out_of_its_text(make_mixed):
    world = make_mixed()
    check_that_no_entry_leads_out(world, world.begin_mixed)
