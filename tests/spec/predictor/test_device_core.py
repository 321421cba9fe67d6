"""The core of the predictor that is to run on the device: the same as here, by the same weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from reprise.kernels.mixture import layout as core_layout
from reprise.kernels.mixture.evidence import (
    Alignment,
    NearTexts,
    SortedAnswers,
    Text,
    advance,
)
from reprise.kernels.mixture.near import lay_out_near
from reprise.kernels.mixture.reference import Presence, Weights, collect, predict
from reprise.spec.predictor import features
from reprise.spec.runtime.layout import BOS, END, MAX_NEAR, REMOVED

NUM_ORDERS = core_layout.NUM_ORDERS


def text_of(prediction: Any) -> Text:
    return Text(prediction.text, prediction.begin, prediction.length)


def near_of(prediction: Any) -> NearTexts:
    near = prediction.near
    return lay_out_near(
        [answer.response_token_ids.tolist() for answer in near],
        [answer.prompt_token_ids.tolist() for answer in near],
        [answer.similarity for answer in near],
        [answer.clause for answer in near],
        own_prompt=prediction.text[: prediction.begin],
    )


def alignment_of(prediction: Any) -> Alignment:
    trace, number = prediction.trace, len(prediction.near)
    return Alignment(trace["pointers"][:number].tolist(), trace["hits"][:number].tolist())


def corpus_of(prediction: Any) -> SortedAnswers:
    text: list[int] = []
    for answer, is_in in prediction.sorted_answers:
        text += [BOS, *(token if is_in else token + REMOVED for token in answer), END]
    plain = [token if token >= BOS else token - REMOVED for token in text]
    entries = [i for i, token in enumerate(plain) if token != END]

    def suffix(i: int) -> list[int]:
        part = plain[i : i + 25]
        return part[: part.index(END) + 1] if END in part else part

    order = sorted(entries, key=lambda i: (suffix(i), i))
    recent = [token for answer in prediction.recent_answers for token in (BOS, *answer, END)]
    return SortedAnswers(text + recent, order, len(text))


def test_the_layout_is_that_of_the_weights() -> None:
    for name, offset in vars(core_layout).items():
        if name.isupper() and hasattr(features, name) and name != "NUM_ORDERS":
            assert offset == getattr(features, name), name
    assert core_layout.MAX_NEAR <= MAX_NEAR


def test_the_same_evidence_in_near_answers_and_context(predictions: Sequence[Any]) -> None:
    seen = 0
    for prediction in predictions[::3]:
        trace = prediction.trace
        found = collect(
            text_of(prediction),
            near_of(prediction),
            alignment_of(prediction),
            SortedAnswers([], [], 0),
        )
        expected = [
            (token, [f for f in row if f], match)
            for token, row, match in zip(
                trace["evidence_token"].tolist(),
                trace["evidence_feature"].tolist(),
                trace["evidence_match"].tolist(),
                strict=True,
            )
        ]
        near_end = int(trace["evidence_near_count"])
        end = near_end + len(found.context)
        got = [(piece.token, list(piece.features), piece.match) for piece in found.pieces]
        assert got == expected[:end]
        assert len(found.near) == near_end
        following = int(trace["evidence_count"]) > end
        if following:  # the corpus's come next
            assert expected[end][1][0] >= core_layout.CORPUS_COUNT
        seen += end > 0
    assert seen > 100


def test_the_same_evidence_in_the_corpus(predictions: Sequence[Any]) -> None:
    seen = 0
    for prediction in predictions[::5]:
        found = collect(
            text_of(prediction),
            near_of(prediction),
            alignment_of(prediction),
            corpus_of(prediction),
        )
        totals = [total for total, _ in prediction.orders[:NUM_ORDERS]]
        assert found.orders.totals == totals[: len(found.orders.totals)]
        for o, (_, counts) in enumerate(prediction.orders[: len(found.orders.totals)]):
            got = dict(zip(found.orders.tokens[o], found.orders.counts[o], strict=True))
            assert got == counts
            seen += len(counts) > 0
    assert seen > 100


def is_core(prediction: Any) -> bool:
    """Whether all that the host predicted from is in the core."""
    deep = any(total for total, _ in prediction.orders[NUM_ORDERS:])
    return not deep and not any(total for total, _ in prediction.beyond)


def test_the_same_choice_where_nothing_else_is_found(predictions: Sequence[Any]) -> None:
    chosen = [prediction for prediction in predictions if is_core(prediction)]
    assert len(chosen) > 20
    with_candidates = 0
    for prediction in chosen:
        near = near_of(prediction)
        found = predict(
            text_of(prediction),
            near,
            alignment_of(prediction),
            corpus_of(prediction),
            Presence(
                Counter(prediction.text[: prediction.begin]),
                Counter(prediction.text[prediction.begin : prediction.length]),
                Counter(
                    t for answer in prediction.near for t in set(answer.response_token_ids.tolist())
                ),
            ),
            Weights(prediction.weights["mixture"].tolist(), prediction.weights["choice"].tolist()),
        )
        trace = prediction.trace
        number = int(trace["candidate_count"])
        assert len(found.candidates) == number
        got = dict(zip((c.token for c in found.candidates), found.probs, strict=False))
        expected = dict(
            zip(
                trace["candidate_token"][:number].tolist(),
                trace["candidate_prob"].tolist(),
                strict=False,
            )
        )
        assert got == pytest.approx(expected, rel=1e-3, abs=1e-5)
        assert found.probs[-1] == pytest.approx(
            float(trace["candidate_prob"][-1]), rel=1e-3, abs=1e-5
        )
        with_candidates += number > 1
    assert with_candidates > 10


def test_the_same_alignment_after_a_token(predictions: Sequence[Any]) -> None:
    seen = 0
    for prediction in predictions[::3]:
        if prediction.after is None or not prediction.near:
            continue
        near, before = near_of(prediction), alignment_of(prediction)
        found = collect(text_of(prediction), near, before, SortedAnswers([], [], 0))
        after = advance(before, found.near, near, prediction.drafted)
        number = len(prediction.near)
        assert after.pointers == prediction.after["pointers"][:number].tolist()
        assert np.allclose(after.hits, prediction.after["hits"][:number])
        seen += after.pointers != before.pointers
    assert seen > 50
