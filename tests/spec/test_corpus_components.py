"""Components from the corpus against counting over sorted lists (conftest.py counts)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reprise.spec.buckets import COUNTS, count_bucket
from reprise.spec.features import CORPUS_COUNT, CORPUS_DEPTH, ESCAPE_NEAR
from reprise.spec.layout import BOS, SUCCESSORS, USED_SUCCESSORS
from reprise.spec.suffix_array import SAMPLED

Component = tuple[int, int, int, tuple[int, ...]]  # token, place, match, features


def components(found: list[tuple[int, dict[int, int]]]) -> list[Component]:
    """The components of all orders up to the longest that was found."""
    top = max((o for o, (total, _) in enumerate(found) if total), default=-1)
    made = []
    for o, (total, counts) in enumerate(found[: top + 1]):
        for token in list(counts)[:USED_SUCCESSORS]:
            bucket = count_bucket(counts[token])
            cell = (o * COUNTS + bucket) * COUNTS + count_bucket(total)
            depth = min(top - o, 5)
            features = (CORPUS_COUNT + cell, CORPUS_DEPTH + depth * COUNTS + bucket, 0, 0, 0, 0)
            made.append((token, -1, 0, features))
    return made


def found_components(prediction: Any) -> list[Component]:
    """What the trail holds behind the components of near answers and context."""
    trail = prediction.trail
    end = int(trail["component_count"])
    first = trail["component_feature"][:end, 0]
    begin = end - int(((first >= CORPUS_COUNT) & (first < ESCAPE_NEAR)).sum())
    columns = [
        trail[f"component_{name}"][begin:end].tolist() for name in ("token", "place", "match")
    ]
    features = [tuple(row) for row in trail["component_feature"][begin:end].tolist()]
    return list(zip(*columns, features, strict=True))


def test_corpus_components(predictions: Sequence[Any]) -> None:
    kinds: Counter[str] = Counter()
    for prediction in predictions:
        found = prediction.orders
        assert found_components(prediction) == components(found)
        kinds["sampled"] += found[0][0] > SAMPLED
        kinds["order 24"] += found[-1][0] > 0
        kinds["more than used"] += any(len(counts) > USED_SUCCESSORS for _, counts in found)
        kinds["more than kept"] += any(len(counts) == SUCCESSORS for _, counts in found)
        kinds["unknown"] += found[0][0] == 0
        kinds["recent answers"] += len(prediction.recent_answers) > 0
        kinds["beginning"] += prediction.text[-1] == BOS
    assert len(kinds) == 7
    assert min(kinds.values()) >= 5, kinds
