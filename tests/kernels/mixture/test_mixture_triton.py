"""The mixture's Triton kernel against its definition: all that is drafted and kept."""

from __future__ import annotations

import random

import pytest
import torch

from reprise.kernels.mixture import triton_mixture
from reprise.kernels.mixture.layout import MAX_NEAR
from reprise.kernels.mixture.near import CATCH_UP

pytestmark = pytest.mark.gpu  # and in the interpreter, by test_interpreter.py

ON_GPU = torch.cuda.is_available()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Small blocks, so that what is scanned takes several."""
    if not ON_GPU:
        monkeypatch.setattr(triton_mixture, "BLOCK", 64)
        monkeypatch.setattr(triton_mixture, "PRESENCE_BLOCK", 64)
        monkeypatch.setattr(triton_mixture, "CHUNK", 64)


def some(draw, number, vocab):
    return [draw.randrange(vocab) for _ in range(number)]


def answers(draw, number, longest, vocab):
    return [some(draw, draw.randrange(1, longest), vocab) for _ in range(number)]


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
    corpora = [
        -1,
        world.put_corpus("a", answers(draw, 30, 20, vocab), recent=answers(draw, 12, 20, vocab)),
        world.put_corpus("b", answers(draw, 3, 9, vocab), removed=[1]),
        world.put_corpus("c", [], recent=answers(draw, 2, 9, vocab)),
    ]
    for slot in range(4):
        begin_some(world, draw, slot, vocab, corpora)
    given = 0
    for _ in range(4):
        rows = draw.sample([-1, 0, 1, 2, 3], draw.randrange(1, 5))
        wanted = [draw.random() < 0.9 for _ in rows]
        length = draw.randrange(1, max_draft + 1)
        drafts, chances = world.draft_both(rows, wanted=wanted, length=length)
        given += int((chances > 0).sum())
        for row, slot in enumerate(rows):
            if slot < 0:
                continue
            if draw.random() < 0.1:
                begin_some(world, draw, slot, vocab, corpora)
            else:
                accepted = draw.randrange(length + 1)
                world.emit(slot, [*drafts[row, :accepted].tolist(), *some(draw, 1, vocab)])
    assert given > 0 or vocab > 1000
