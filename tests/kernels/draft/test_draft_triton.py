"""The Triton kernels against the reference: all that is drafted and kept, over random lives."""

from __future__ import annotations

import random

import pytest
import torch

from reprise.kernels.draft import triton_kernels
from reprise.kernels.draft.constants import (
    ACCEPTED,
    COUNT_FIELDS,
    NUM_COPIES,
    NUM_SOURCES,
    VOTES,
)
from reprise.kernels.draft.state import PENDING_COPY, PENDING_SOURCE, DraftState
from reprise.kernels.draft.step_counts import count_step
from reprise.tests.kernels.draft_world import (
    answers,
    check_that_no_entry_leads_out,
    draft_at_random,
    some,
)

pytestmark = pytest.mark.gpu  # and in the interpreter, by test_interpreter.py

ON_GPU = torch.cuda.is_available()


@pytest.fixture(params=[64] if not ON_GPU else [64, triton_kernels.BLOCK], autouse=True)
def block(request, monkeypatch):
    """Small blocks, so that what is scanned takes several."""
    monkeypatch.setattr(triton_kernels, "BLOCK", request.param)


def begin_some(world, draw, slot, vocab, corpora):
    """A random request: any part of it may be missing."""
    longest = world.all_token_ids.shape[1]
    prompt = some(draw, draw.randrange(1, longest // 2), vocab)
    near = answers(draw, draw.randrange(5), 50, vocab) if draw.random() < 0.7 else []
    answer = some(draw, draw.randrange(4), vocab)
    world.begin(slot, prompt, answer, near=near, corpus_row=draw.choice(corpora))


@pytest.mark.parametrize("vocab", [1, 2, 5, 40])
@pytest.mark.parametrize("max_draft", [1, 3, 16])
def test_random_requests_are_drafted_alike(make_world, vocab, max_draft):
    draw = random.Random(17 * vocab + max_draft)
    world = make_world(max_draft=max_draft, max_model_len=150, max_near=200)
    given = draft_at_random(world, draw, vocab=vocab, steps=8, begin=begin_some)
    assert given > 0


def test_what_is_no_token_of_the_vocabulary_is_not_drafted(make_world):
    draw = random.Random(5)
    world = make_world(max_model_len=150, max_near=200)
    corpora = [-1, world.put_corpus("a", answers(draw, 30, 20, 9), recent=answers(draw, 12, 20, 9))]
    for _ in range(6):
        for slot in range(4):
            begin_some(world, draw, slot, 9, corpora)
        drafts, chances = world.draft_both([0, 1, 2, 3], vocab_size=7)
        assert drafts[chances > 0].max() < 7


def test_a_large_range_is_asked_at_even_distances(make_world):
    draw = random.Random(3)
    world = make_world()
    row = world.put_corpus("a", [[1, draw.randrange(2, 6), k] for k in range(6 * VOTES)])
    world.begin(0, [0], [7, 1], corpus_row=row)
    world.draft_both([0])
    world.begin(1, [0], [1], corpus_row=row)  # with BOS before it
    world.draft_both([1, 0])


def test_a_thousand_answers_that_are_alike(make_world):
    world = make_world(max_model_len=100)
    row = world.put_corpus("a", [[4, 4, 4, 4, 5]] * 1000, recent=[[4, 4]] * 60)
    world.begin(0, [4] * 40, [4] * 40, near=[[4] * 30] * 3, corpus_row=row)
    drafts, _ = world.draft_both([0])
    assert drafts[0, 0] == 4


def test_one_request_none_and_nothing_at_all(make_world):
    world = make_world(num_slots=1)
    world.draft_both([0])
    world.draft_both([])
    world.begin(0, [1], [])
    world.draft_both([0])
    world.begin(0, [], [5])
    world.draft_both([0])
    world.begin(0, [], [])
    world.draft_both([0])


def test_a_full_context_has_no_room_for_drafts(make_world):
    world = make_world(max_model_len=20, max_draft=16)
    world.begin(0, [1, 2], [1] * 15)
    for _ in range(4):
        world.draft_both([0])
        world.emit(0, [1])
    assert int(world.total_len[0]) == 20
    assert not world.draft_both([0])[1].any()


def test_views_into_larger_tensors_are_written_in_place(make_world):
    world = make_world()
    world.begin(1, [1, 2, 3], [7, 1], near=[[7, 1, 5]])
    wide = torch.full((4, 130), 3, dtype=torch.int32, device=world.all_token_ids.device)
    wide[:, 1:65] = world.all_token_ids
    world.all_token_ids = wide[:, 1:65]
    assert world.draft_both([0, 1])[0][1, 0] == 5


def test_the_length_of_drafts_may_change_between_steps(make_world):
    world = make_world(max_draft=16)
    world.begin(0, [9], [1, 2], near=[[1, 2, 3, 4, 5, 6, 7, 8]])
    for length in (16, 1, 5, 16):
        drafts, _ = world.draft_both([0], length=length)
        world.emit(0, drafts[0, :1].tolist())
    assert int(world.state.totals.sum()) > 0


def test_launches_do_not_depend_on_what_is_drafted(make_world, monkeypatch):
    launched = []
    for name in ("draft_kernel", "fold_kernel"):
        kernel = getattr(triton_kernels, name)

        def spy(grid, kernel=kernel, name=name):
            launched.append((name, grid))
            return kernel[grid]

        monkeypatch.setattr(
            triton_kernels, name, type("Spy", (), {"__getitem__": staticmethod(spy)})()
        )
    world = make_world()
    world.draft([0, 1], backend="triton")
    world.begin(0, [9], [1, 2], near=[[1, 2, 3]])
    world.draft([0, 1], backend="triton")
    assert launched == [("draft_kernel", (2,)), ("fold_kernel", (1,))] * 2


@pytest.mark.parametrize("max_draft", [1, 5, 16])
def test_steps_are_counted_alike(device, max_draft):
    draw = torch.Generator().manual_seed(max_draft)

    def below(limit, *shape, least=0):
        return torch.randint(least, limit, shape, dtype=torch.int32, generator=draw).to(device)

    num_slots = 40
    state = DraftState.create(
        num_slots=num_slots, max_draft=max_draft, max_near_tokens=4, num_corpora=1,
        arena_tokens=64, device=device,
    )  # fmt: skip
    expected = torch.zeros((num_slots, COUNT_FIELDS), dtype=torch.int32, device=device)
    got = expected.clone()
    for num_reqs in (1, 7, num_slots):
        state.slots.copy_(below(3, *state.slots.shape))
        state.pending.copy_(below(3, *state.pending.shape))
        copies = below(NUM_COPIES, num_slots, least=-1)
        state.pending[:, PENDING_COPY] = copies
        state.pending[:, PENDING_SOURCE] = below(NUM_SOURCES, num_slots).where(copies >= 0, -1)
        state.pending_token_ids.copy_(below(6, *state.pending_token_ids.shape, least=-3))
        step = {
            "idx_mapping": torch.randperm(num_slots, generator=draw)[:num_reqs].to(device),
            "num_sampled": below(max_draft + 2, num_reqs),
            "num_rejected": below(max_draft + 1, num_reqs),
        }
        count_step(state, expected, **step, backend="torch")
        count_step(state, got, **step, backend="triton")
    assert expected[:, ACCEPTED:].any()
    assert torch.equal(got, expected)


def test_no_suffix_array_leads_out_of_its_text(make_world):
    world = make_world()
    check_that_no_entry_leads_out(world, world.begin)
