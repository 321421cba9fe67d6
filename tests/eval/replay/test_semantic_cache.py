"""A semantic cache, against embeddings whose cosines are known."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reprise.eval.replay.semantic_cache import cached_rows, replay_semantic_cache
from reprise.eval.replay.token_rows import TokenRow
from reprise.eval.replay.traces import TraceRow


class AngleEmbedder:
    """A text that is a number of degrees, as the unit vector at that angle."""

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        angles = np.deg2rad([float(text) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def rows(*described: tuple[str, list[int], bool]) -> list[TokenRow]:
    return [
        TokenRow(
            str(number),
            np.array([1], np.int32),
            np.array(response, np.int32),
            None,
            TraceRow(prompt=angle, response="r", warm=warm),
        )
        for number, (angle, response, warm) in enumerate(described)
    ]


def test_hits_misses_and_changed_answers() -> None:
    trace = rows(
        ("0", [1, 2, 3], True),
        ("5", [1, 2, 3], False),  # hit, the same
        ("6", [1, 2, 4], False),  # hit, changed
        ("80", [7, 8], False),  # miss, one step; joins
        ("81", [9, 9, 9], False),  # hit on the one before, changed
    )
    counts = replay_semantic_cache(trace, embedder=AngleEmbedder(), threshold=0.9)  # type: ignore[arg-type]
    assert (counts.requests, counts.hits, counts.changed) == (4, 3, 2)
    assert counts.hit_rate == 0.75
    assert counts.changed_answers == 2 / 3
    assert counts.steps == 1
    assert counts.emitted_tokens == 2 + 2 + 1 + 1
    similarities = [reply and round(reply.similarity, 3) for reply in counts.replies]
    assert similarities == [0.996, 0.995, None, 1.0]
    assert [reply and reply.question for reply in counts.replies] == ["0", "0", None, "80"]


def test_an_empty_cache_never_hits() -> None:
    counts = replay_semantic_cache(
        rows(("0", [1, 2], False)),
        embedder=AngleEmbedder(),  # type: ignore[arg-type]
        threshold=-1.0,
    )
    assert (counts.hits, counts.hit_rate, counts.changed_answers) == (0, 0.0, 0.0)


def test_which_rows_a_live_cache_would_serve() -> None:
    described = [("0", True), ("5", False), ("80", False), ("81", False), ("40", False)]
    trace = [TraceRow(prompt=angle, response="r", warm=warm) for angle, warm in described]
    embedder: Any = AngleEmbedder()
    found = cached_rows(trace, embedder=embedder, threshold=0.9)
    assert [hit and hit.row for hit in found] == [0, None, 2, None]
    assert [hit and round(hit.similarity, 3) for hit in found] == [0.996, None, 1.0, None]
    assert cached_rows(trace[1:2], embedder=embedder, threshold=0.9) == [None]
