"""Attention against a softmax written out."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from reprise.spec.predictor.attention import attend, gather_candidates
from reprise.spec.predictor.features import (
    CORPUS_COUNT,
    ESCAPE_CONTEXT,
    ESCAPE_CORPUS,
    ESCAPE_NEAR,
    NUM_ATTENTION,
)
from reprise.spec.predictor.scratch import make_scratch
from reprise.spec.runtime.layout import MAX_COMPONENTS


@pytest.mark.parametrize("count", [0, 1, 17, MAX_COMPONENTS])
def test_attention_is_a_softmax_over_components(count: int, components: Callable[..., Any]) -> None:
    tokens, features = components(count)
    table = np.random.default_rng(1).normal(size=NUM_ATTENTION).astype(np.float32)
    table[0] = 0.0
    scratch = make_scratch()
    weights, escape_features = np.zeros(MAX_COMPONENTS, np.float32), np.zeros(8, np.int16)
    number = gather_candidates(tokens, count, scratch)
    escape = attend(features, count, 20, 3, 2, table, escape_features, weights, scratch)
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
        assert scratch.chance[candidate] == pytest.approx(expected, rel=1e-3)
        assert scratch.best[candidate] in own
        assert scores[scratch.best[candidate]] == pytest.approx(max(scores[i] for i in own))


def test_weights_of_real_components(predictions: Sequence[Any]) -> None:
    for prediction in predictions:
        trail, table = prediction.trail, prediction.weights["attention"].astype(np.float64)
        count, near_end = int(trail["component_count"]), int(trail["component_near_count"])
        features, matches = trail["component_feature"][:count], trail["component_match"][:count]
        longest = [
            min(10, max([0, *part.tolist()])) for part in (matches[:near_end], matches[near_end:])
        ]
        orders = max((o + 1 for o, (total, _) in enumerate(prediction.orders) if total), default=0)
        escape = [ESCAPE_NEAR + longest[0], ESCAPE_CONTEXT + longest[1], ESCAPE_CORPUS + orders]
        assert trail["escape_feature"][:3].tolist() == escape
        scores = np.append(table[features].sum(axis=1), table[escape].sum())
        expected = np.exp(scores - scores.max())
        expected /= expected.sum()
        assert trail["component_weight"][:count] == pytest.approx(expected[:-1], abs=1e-5)
        assert trail["escape_weight"] == pytest.approx(expected[-1], abs=1e-5)
        assert (features[:, 0] < ESCAPE_NEAR).all()
        assert (features[:near_end, 0] < CORPUS_COUNT).all()
