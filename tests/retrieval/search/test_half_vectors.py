"""Vectors in float16: moved, cut off and overwritten where they lie."""

import numpy as np
import pytest

from reprise.retrieval.search.half_vectors import HalfVectors, codes_of

DIM = 7


@pytest.fixture
def rows():
    made = np.random.default_rng(0).standard_normal((9, DIM)).astype(np.float32)
    return (made / np.linalg.norm(made, axis=1, keepdims=True)).astype(np.float16)


def test_positions_follow_moves_and_cuts(rows):
    held = HalfVectors(DIM)
    for row in rows:
        held.append(row.astype(np.float32))
    expected = [row.astype(np.float32) for row in rows]
    for position in (2, 7, 0, 5):
        held.move_last_to(position)
        last = expected.pop()
        if position < len(expected):
            expected[position] = last
        assert np.array_equal(held.rows(0, len(held)), expected)
    held.cut(2)
    held.cut(2)
    held.release()
    assert np.array_equal(held.rows(0, 2), expected[:2])
    assert held.rows(1, 1).shape == (0, DIM)
    cosines, positions = held.search(np.stack(expected[1::-1]), 1)
    assert positions.ravel().tolist() == [1, 0]
    assert cosines.ravel() == pytest.approx(1.0, abs=2e-3)
    held.cut(0)
    held.release()
    held.append(expected[0])
    assert len(held) == 1


def test_what_is_cut_off_is_overwritten(rows):
    held = HalfVectors(DIM)
    for row in rows:
        held.append(row.astype(np.float32))
    memory = codes_of(held._index)
    assert memory[8].tobytes() == rows[8].tobytes()
    held.cut(4)
    assert not memory[4:].any()
    assert memory[3].tobytes() == rows[3].tobytes()
