"""Regions of the arena, and rows of near answers."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from reprise.kernels.draft.arena import CorpusArena
from reprise.kernels.draft.constants import (
    BOS,
    END,
    ORDER_BEGIN,
    ORDER_LENGTH,
    RECENT_BEGIN,
    TEXT_BEGIN,
    TEXT_LENGTH,
)
from reprise.kernels.draft.near_row import near_row


def tokens(number, value=1):
    return np.full(number, value, np.int32)


def test_a_new_version_lies_beside_the_old_one_and_frees_it():
    arena = CorpusArena(num_corpora=2, arena_tokens=100)
    first = arena.put("a", tokens(10), tokens(8), recent_begin=10, room=2)
    second = arena.put("a", tokens(12), tokens(10), recent_begin=12, room=0)
    assert (first.row, first.fields[TEXT_BEGIN]) == (second.row, 0)
    assert second.fields.tolist() == [20, 12, 32, 10, 12]
    assert [begin for begin, _ in second.parts] == [20, 32]
    assert arena.num_free_tokens == 100 - 22


def test_recent_answers_go_into_the_room_that_is_left():
    arena = CorpusArena(num_corpora=2, arena_tokens=100)
    arena.put("a", tokens(10), tokens(8), recent_begin=10, room=6)
    writes = arena.append("a", tokens(3, 7))
    ((begin, values),) = writes.parts
    assert (begin, values.tolist()) == (10, [BOS, 7, 7, 7, END])
    assert writes.fields[TEXT_LENGTH] == 15
    assert writes.fields[RECENT_BEGIN] == 10
    assert arena.append("a", tokens(1)) is None


def test_what_has_no_room_changes_nothing():
    arena = CorpusArena(num_corpora=1, arena_tokens=40)
    arena.put("a", tokens(10), tokens(10), recent_begin=10, room=4)
    assert arena.put("a", tokens(10), tokens(10), recent_begin=10, room=4) is None
    assert arena.put("b", tokens(1), tokens(1), recent_begin=1, room=0) is None  # no row
    assert arena.row("b") == -1
    assert arena.append("a", tokens(2)) is not None


def test_removal_rewrites_a_part_of_the_text():
    arena = CorpusArena(num_corpora=1, arena_tokens=40)
    arena.put("a", tokens(10), tokens(10), recent_begin=10, room=0)
    ((begin, _),) = arena.rewrite("a", 3, tokens(4)).parts
    assert begin == 3
    with pytest.raises(ValueError, match="within the 10 of the text, came 4 from 7 on"):
        arena.rewrite("a", 7, tokens(4))


def test_regions_never_overlap_and_none_is_lost():
    draw = random.Random(1)
    arena = CorpusArena(num_corpora=6, arena_tokens=2000)
    live = {}
    for _ in range(2000):
        name = draw.choice("abcdefgh")
        if name in arena and draw.random() < 0.3:
            arena.drop(name)
            del live[name]
        else:
            size, room = draw.randrange(1, 300), draw.randrange(50)
            writes = arena.put(name, tokens(size), tokens(size), recent_begin=size, room=room)
            if writes is not None:
                live[name] = (writes.row, int(writes.fields[TEXT_BEGIN]), 2 * size + room)
                ends = writes.fields[ORDER_BEGIN] + writes.fields[ORDER_LENGTH]
                assert ends == live[name][1] + live[name][2]
        regions = sorted(live.values(), key=lambda region: region[1])
        assert len({row for row, _, _ in regions}) == len(regions)
        for (_, begin, size), (_, following, _) in itertools.pairwise(regions):
            assert begin + size <= following
        assert arena.num_free_tokens == 2000 - sum(size for _, _, size in regions)
    for name in list(live):
        arena.drop(name)
    assert arena.put("z", tokens(1000), tokens(1000), recent_begin=1000, room=0) is not None


def test_near_answers_are_cut_to_what_fits():
    row = near_row([tokens(3), tokens(0), tokens(9, 4)], max_near_tokens=10)
    assert row.tolist() == [BOS, 1, 1, 1, END, BOS, 4, 4, 4, END]
    assert near_row([tokens(3), tokens(9)], max_near_tokens=7).tolist() == row[:5].tolist()
    assert near_row([], max_near_tokens=10).tolist() == []
