"""Token tables against plain lists."""

import numpy as np
import pytest

from reprise.spec.api.near_answer import IntArray
from reprise.spec.corpus.token_table import (
    COUNT,
    KEY,
    OUTPUT_COUNT,
    context_table,
    entry_of,
    first_position,
    link,
    near_table,
    with_room,
)
from reprise.spec.runtime.layout import (
    BOS,
    END,
    NEAR_POSITION_FIELDS,
    NEXT_POSITION,
    POSITION_FIELDS,
    TAG,
    TOKEN,
)


def visited(table: IntArray, positions: IntArray, token: int) -> list[int]:
    """All positions of a token, in the order in which a visit meets them."""
    found = []
    position = first_position(table, len(table) - 1, token)
    while position >= 0:
        found.append(int(position))
        position = positions[position, NEXT_POSITION]
    return found


@pytest.mark.parametrize("tokens", [3, 200, 40_000])
@pytest.mark.parametrize("length", [1, 5, 3000])
def test_a_context_finds_the_latest_places_first(length: int, tokens: int) -> None:
    random = np.random.default_rng(length + tokens)
    positions = np.zeros((length + 700, POSITION_FIELDS), np.int32)
    text, chain = positions[:, TOKEN], positions[:, NEXT_POSITION]
    text[:] = random.integers(0, tokens, len(text))
    begin = length // 2
    text[begin] = BOS
    table = with_room(context_table(positions, length, begin, 100), 700)
    for start in range(length, len(text), 7):
        link(text, chain, table, len(table) - 1, start, start + 7, begin)
    for token in [*np.unique(text).tolist(), tokens + 1, END]:
        expected = np.flatnonzero(text == token)
        assert visited(table, positions, token) == expected[::-1].tolist()
        entry = table[entry_of(table, len(table) - 1, token)]
        assert entry[COUNT] == np.count_nonzero(expected < begin)
        assert entry[OUTPUT_COUNT] == np.count_nonzero(expected >= begin)


def test_near_answers_are_found_from_the_first_on_and_counted_once_each() -> None:
    random = np.random.default_rng(1)
    answers = [
        [BOS, *random.integers(0, 500, int(random.integers(1, 200))).tolist(), END]
        for _ in range(32)
    ]
    text = np.array([token for answer in answers for token in answer], np.int32)
    positions = np.zeros((len(text), NEAR_POSITION_FIELDS), np.int32)
    positions[:, TOKEN] = text
    positions[:, TAG] = np.repeat(np.arange(32), [len(answer) for answer in answers])
    positions[:, TAG] += 256 * random.integers(0, 4, len(text)).astype(np.int32)
    table = near_table(positions)
    for token in [BOS, *range(501)]:
        assert visited(table, positions, token) == np.flatnonzero(text == token).tolist()
        entry = table[entry_of(table, len(table) - 1, token)]
        assert entry[COUNT] == sum(token in answer for answer in answers)


def test_tables_stay_half_empty() -> None:
    positions = np.zeros((5000, POSITION_FIELDS), np.int32)
    assert len(context_table(positions, 5000, 0, 10)) == 64
    positions[:, TOKEN] = np.arange(5000)
    table = context_table(positions, 5000, 0, 1000)
    assert 2 * 6000 <= len(table) <= 4 * 6000
    assert np.count_nonzero(table[:, KEY]) == 5000


def test_no_choice_of_tokens_crowds_a_table() -> None:
    """Those that all begin to look in an eighth of the table, as someone who knows it may send."""
    everything = np.arange(150_000, dtype=np.int64)
    size = 1 << 15
    first = ((everything + 3) * 0x9E3779B1 >> 7) & (size - 1)
    crowd = everything[first < size // 8][:12_000]
    assert len(crowd) == 12_000
    positions = np.zeros((len(crowd), POSITION_FIELDS), np.int32)
    positions[:, TOKEN] = crowd
    table = context_table(positions, len(crowd), 0, 1)
    assert len(table) == size
    looks = 0
    for token in crowd.tolist():
        mixed = (token + 3) * 0x9E3779B1
        entry = (mixed >> 7) & (size - 1)
        looks += 1
        while table[entry, KEY] != token + 3:
            assert table[entry, KEY] != 0
            entry = (entry + (mixed >> 23 | 1)) & (size - 1)
            looks += 1
    assert looks < 4 * len(crowd)
