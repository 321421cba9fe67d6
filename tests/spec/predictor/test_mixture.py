"""The mixture against a softmax written out."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from reprise.spec.predictor.features import (
    CORPUS_COUNT,
    ESCAPE_CONTEXT,
    ESCAPE_CORPUS,
    ESCAPE_NEAR,
    NUM_MIXTURE,
)
from reprise.spec.predictor.mixture import gather_candidates, mix_evidence
from reprise.spec.predictor.scratch import make_scratch
from reprise.spec.runtime.layout import MAX_EVIDENCE


@pytest.mark.parametrize("count", [0, 1, 17, MAX_EVIDENCE])
def test_the_mixture_is_a_softmax_over_evidence(count: int, evidence: Callable[..., Any]) -> None:
    tokens, features = evidence(count)
    table = np.random.default_rng(1).normal(size=NUM_MIXTURE).astype(np.float32)
    table[0] = 0.0
    scratch = make_scratch()
    weights, escape_features = np.zeros(MAX_EVIDENCE, np.float32), np.zeros(8, np.int16)
    number = gather_candidates(tokens, count, scratch)
    escape = mix_evidence(features, count, 20, 3, 2, table, escape_features, weights, scratch)
    chosen = [ESCAPE_NEAR + 10, ESCAPE_CONTEXT + 3, ESCAPE_CORPUS + 2]
    assert escape_features[:3].tolist() == chosen
    scores = [float(table[features[i]].sum(dtype=np.float64)) for i in range(count)]
    none = float(table[chosen].sum(dtype=np.float64))
    total = math.exp(none) + sum(map(math.exp, scores))
    assert escape == pytest.approx(math.exp(none) / total, rel=1e-4)
    assert number == len(set(tokens[:count].tolist()))
    for candidate in range(number):
        token = scratch.token[candidate]
        own = [i for i in range(count) if tokens[i] == token]
        expected = sum(math.exp(scores[i]) for i in own) / total
        assert scratch.prob[candidate] == pytest.approx(expected, rel=1e-3)
        assert scratch.best[candidate] in own
        assert scores[scratch.best[candidate]] == pytest.approx(max(scores[i] for i in own))


def test_weights_of_real_evidence(predictions: Sequence[Any]) -> None:
    for prediction in predictions:
        trace, table = prediction.trace, prediction.weights["mixture"].astype(np.float64)
        count, near_end = int(trace["evidence_count"]), int(trace["evidence_near_count"])
        features, matches = trace["evidence_feature"][:count], trace["evidence_match"][:count]
        longest = [
            min(10, max([0, *part.tolist()])) for part in (matches[:near_end], matches[near_end:])
        ]
        orders = max((o + 1 for o, (total, _) in enumerate(prediction.orders) if total), default=0)
        escape = [ESCAPE_NEAR + longest[0], ESCAPE_CONTEXT + longest[1], ESCAPE_CORPUS + orders]
        assert trace["escape_feature"][:3].tolist() == escape
        scores = np.append(table[features].sum(axis=1), table[escape].sum())
        expected = np.exp(scores - scores.max())
        expected /= expected.sum()
        assert trace["evidence_weight"][:count] == pytest.approx(expected[:-1], abs=1e-5)
        assert trace["escape_weight"] == pytest.approx(expected[-1], abs=1e-5)
        assert (features[:, 0] < ESCAPE_NEAR).all()
        assert (features[:near_end, 0] < CORPUS_COUNT).all()
