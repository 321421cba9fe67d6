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


def num_free(arena):
    """Unused tokens, which need not lie side by side."""
    return sum(size for _, size in arena._free)


def test_a_new_version_lies_beside_the_one_in_place_and_frees_it():
    arena = CorpusArena(num_corpora=2, arena_tokens=100)
    first = arena.put("a", tokens(10), tokens(8), recent_begin=10, room=2)
    arena.settle("a")
    second = arena.put("a", tokens(12), tokens(10), recent_begin=12, room=0)
    assert (first.row, first.fields[TEXT_BEGIN]) == (second.row, 0)
    assert second.fields.tolist() == [20, 12, 32, 10, 12]
    assert [begin for begin, _ in second.parts] == [20, 32]
    assert num_free(arena) == 100 - 20 - 22
    arena.settle("a")
    assert num_free(arena) == 100 - 22


def test_a_version_that_never_was_in_place_leaves_its_region_to_the_next():
    arena = CorpusArena(num_corpora=2, arena_tokens=100)
    arena.put("a", tokens(10), tokens(8), recent_begin=10, room=2)
    arena.settle("a")
    for _ in range(3):
        later = arena.put("a", tokens(20), tokens(20), recent_begin=20, room=0)
        assert later.fields[TEXT_BEGIN] == 20
        assert num_free(arena) == 100 - 20 - 40
    assert arena.put("a", tokens(40), tokens(41), recent_begin=40, room=0) is None
    assert num_free(arena) == 100 - 20 - 40
    assert arena.empty("a") == later.row
    assert num_free(arena) == 100
    assert arena.append("a", tokens(1)) is None
    assert arena.put("a", tokens(50), tokens(50), recent_begin=50, room=0).row == later.row


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
    arena.settle("a")
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
    latest, in_place, rows = {}, {}, {}  # regions: where, and how large
    for _ in range(3000):
        name = draw.choice("abcdefgh")
        action = draw.random()
        if name in arena and action < 0.2:
            arena.drop(name)
            for each in (latest, in_place, rows):
                each.pop(name, None)
        elif name in arena and action < 0.3:
            assert arena.empty(name) == rows[name]
            latest.pop(name, None)
            in_place.pop(name, None)
        elif name in latest and action < 0.6:
            arena.settle(name)
            in_place[name] = latest[name]
        else:
            size, room = draw.randrange(1, 200), draw.randrange(50)
            writes = arena.put(name, tokens(size), tokens(size), recent_begin=size, room=room)
            if writes is not None:
                latest[name] = int(writes.fields[TEXT_BEGIN]), 2 * size + room
                ends = writes.fields[ORDER_BEGIN] + writes.fields[ORDER_LENGTH]
                assert ends == sum(latest[name])
                assert rows.setdefault(name, writes.row) == writes.row
        regions = sorted({*latest.values(), *in_place.values()})
        assert len(set(rows.values())) == len(rows)
        for (begin, size), (following, _) in itertools.pairwise(regions):
            assert begin + size <= following
        assert num_free(arena) == 2000 - sum(size for _, size in regions)
    for name in list(rows):
        arena.drop(name)
    assert arena.put("z", tokens(1000), tokens(1000), recent_begin=1000, room=0) is not None


def test_near_answers_are_cut_to_what_fits():
    row = near_row([tokens(3), tokens(0), tokens(9, 4)], max_near_tokens=10)
    assert row.tolist() == [BOS, 1, 1, 1, END, BOS, 4, 4, 4, END]
    assert near_row([tokens(3), tokens(9)], max_near_tokens=7).tolist() == row[:5].tolist()
    assert near_row([], max_near_tokens=10).tolist() == []
