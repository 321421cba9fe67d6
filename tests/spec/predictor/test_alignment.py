"""Alignment against plain loops."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from reprise.spec.predictor.alignment import DECAY, FAR, advance_alignment, follow
from reprise.spec.predictor.scratch import make_scratch
from reprise.spec.runtime.layout import BOS, END, MAX_NEAR


def test_alignment_jumps_to_a_match_or_moves_on() -> None:
    scratch = make_scratch()
    tags = np.repeat(np.arange(3, dtype=np.int32), 20)
    tokens = np.array([5, 5, 5, 6], np.int32)
    positions = np.array([7, 15, 22, 41], np.int32)
    matches = np.array([1, 6, 2, 9], np.int32)
    pointers, hits = np.zeros(MAX_NEAR, np.int32), np.ones(MAX_NEAR, np.float32)
    pointers[:3] = [6, 22, -1]
    after, after_hits = np.zeros_like(pointers), np.zeros_like(hits)
    advance_alignment(
        tokens, positions, matches, tags, 4, 5, 3, pointers, hits, after, after_hits, scratch
    )
    assert after[:3].tolist() == [16, 23, -1]
    expected = [DECAY + 1.0, DECAY + 1.0, DECAY]
    assert after_hits[:3].tolist() == pytest.approx(expected)
    assert not after_hits[3:].any()


def test_without_evidence_all_move_on_and_who_was_right_is_credited() -> None:
    near_text = np.array([BOS, 5, 6, END, BOS, 6, 5, END], np.int32)
    pointers, hits = np.zeros(MAX_NEAR, np.int32), np.ones(MAX_NEAR, np.float32)
    pointers[:4] = [1, 5, -1, 8]  # the token, another, nowhere, past the end
    after, after_hits = np.zeros_like(pointers), np.ones_like(hits)
    follow(near_text, len(near_text), 5, 4, pointers, hits, after, after_hits)
    assert after[:4].tolist() == [2, 6, -1, 9]
    assert after_hits[:4].tolist() == pytest.approx([DECAY + 1.0, DECAY, DECAY, DECAY])
    assert not after_hits[4:].any()


def next_pointer(evidence: list[tuple[int, int]], pointer: int) -> tuple[int, bool]:
    """(pointer, whether it hit) from the (position, match) that predicted the token."""
    best, best_position = np.float32(0.0), -1
    for position, match in evidence:
        distance = min(FAR, abs(position - pointer))
        far_enough = match >= 2 or (match >= 1 and distance <= 8)
        score = match + 1 - 0.05 * distance
        if match and far_enough and score > float(best):
            best, best_position = np.float32(score), position + 1
    if best_position >= 0:
        return best_position, True
    return (pointer + 1 if pointer >= 0 else -1), False


def test_alignment_within_drafts(predictions: Sequence[Any]) -> None:
    kinds: Counter[str] = Counter()
    for prediction in predictions:
        if prediction.after is None or not prediction.near:
            continue
        trace, count = prediction.trace, int(prediction.trace["evidence_near_count"])
        ends = np.cumsum([len(near.response_token_ids) + 2 for near in prediction.near]).tolist()
        for near, (begin, end) in enumerate(zip([0, *ends], ends, strict=False)):
            pointer = int(trace["pointers"][near])
            own = [
                (int(trace["evidence_position"][i]), int(trace["evidence_match"][i]))
                for i in range(count)
                if trace["evidence_token"][i] == prediction.drafted
                and begin <= trace["evidence_position"][i] < end
            ]
            expected, hit = next_pointer(own, pointer)
            assert prediction.after["pointers"][near] == expected
            hits = DECAY * float(trace["hits"][near]) + hit
            assert prediction.after["hits"][near] == pytest.approx(hits, abs=1e-5)
            kinds["hit"] += hit
            kinds["moved on"] += not hit and pointer >= 0
            kinds["jumped"] += hit and expected != pointer + 1
            kinds["several"] += len(own) > 1
            kinds["unknown"] += expected < 0
        assert not prediction.after["hits"][len(ends) :].any()
    assert len(kinds) == 5
    assert min(kinds.values()) >= 10, kinds
