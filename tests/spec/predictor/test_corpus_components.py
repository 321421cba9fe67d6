"""Components from the corpus against counting over sorted lists (conftest.py counts)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reprise.spec.corpus.suffix_array import SAMPLED
from reprise.spec.predictor.buckets import COUNTS, count_bucket
from reprise.spec.predictor.corpus_components import MAX_SKIPPED_LOOKS
from reprise.spec.predictor.features import CORPUS_COUNT, CORPUS_DEPTH, CORPUS_SKIPPED, ESCAPE_NEAR
from reprise.spec.runtime.layout import BOS, SUCCESSORS, USED_SKIPPED, USED_SUCCESSORS

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


def skipped(found: list[tuple[int, dict[int, int]]]) -> list[Component]:
    """The components of the tokens before the last."""
    made = []
    for o, (total, counts) in enumerate(found):
        for token in list(counts)[:USED_SKIPPED]:
            cell = (o * COUNTS + count_bucket(counts[token])) * COUNTS + count_bucket(total)
            made.append((token, -1, 0, (CORPUS_SKIPPED + cell, 0, 0, 0, 0, 0)))
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
        beyond = prediction.beyond
        assert found_components(prediction) == components(found) + skipped(beyond)
        kinds["sampled"] += found[0][0] > SAMPLED
        kinds["order 24"] += found[-1][0] > 0
        kinds["more than used"] += any(len(counts) > USED_SUCCESSORS for _, counts in found)
        kinds["more than kept"] += any(len(counts) == SUCCESSORS for _, counts in found)
        kinds["unknown"] += found[0][0] == 0
        kinds["recent answers"] += len(prediction.recent_answers) > 0
        kinds["removed answers"] += not all(is_in for _, is_in in prediction.sorted_answers)
        kinds["beginning"] += prediction.text[-1] == BOS
        kinds["four tokens before"] += beyond[3][0] > 0
        kinds["too frequent alone"] += beyond[0][0] == 0 < beyond[1][0]
        kinds["many looks"] += beyond[1][0] > MAX_SKIPPED_LOOKS // 2
        kinds["more than used before"] += any(len(counts) > USED_SKIPPED for _, counts in beyond)
    assert len(kinds) == 12
    assert min(kinds.values()) >= 5, kinds
