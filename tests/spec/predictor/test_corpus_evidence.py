"""Evidence from the corpus against counting over sorted lists (conftest.py counts)."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reprise.spec.corpus.suffix_array import SAMPLED
from reprise.spec.predictor.buckets import COUNTS, count_bucket
from reprise.spec.predictor.corpus_evidence import MAX_SKIPPED_LOOKS
from reprise.spec.predictor.features import CORPUS_COUNT, CORPUS_DEPTH, CORPUS_SKIPPED, ESCAPE_NEAR
from reprise.spec.runtime.layout import BOS, SUCCESSORS, USED_SKIPPED, USED_SUCCESSORS

EvidenceRow = tuple[int, int, int, tuple[int, ...]]  # token, position, match, features


def evidence(found: list[tuple[int, dict[int, int]]]) -> list[EvidenceRow]:
    """The evidence of all orders up to the longest that was found."""
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


def skipped(found: list[tuple[int, dict[int, int]]]) -> list[EvidenceRow]:
    """The evidence of the tokens before the last."""
    made = []
    for o, (total, counts) in enumerate(found):
        for token in list(counts)[:USED_SKIPPED]:
            cell = (o * COUNTS + count_bucket(counts[token])) * COUNTS + count_bucket(total)
            made.append((token, -1, 0, (CORPUS_SKIPPED + cell, 0, 0, 0, 0, 0)))
    return made


def found_evidence(prediction: Any) -> list[EvidenceRow]:
    """What the trace holds behind the evidence of near answers and context."""
    trace = prediction.trace
    end = int(trace["evidence_count"])
    first = trace["evidence_feature"][:end, 0]
    begin = end - int(((first >= CORPUS_COUNT) & (first < ESCAPE_NEAR)).sum())
    columns = [
        trace[f"evidence_{name}"][begin:end].tolist() for name in ("token", "position", "match")
    ]
    features = [tuple(row) for row in trace["evidence_feature"][begin:end].tolist()]
    return list(zip(*columns, features, strict=True))


def test_corpus_evidence(predictions: Sequence[Any]) -> None:
    kinds: Counter[str] = Counter()
    for prediction in predictions:
        found = prediction.orders
        beyond = prediction.beyond
        assert found_evidence(prediction) == evidence(found) + skipped(beyond)
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
