"""Evidence from the request's own text against plain loops over lists."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reprise.spec.predictor.buckets import (
    MATCHES,
    SECOND_MATCHES,
    coarse_match_bucket,
    match_bucket,
    recency_bucket,
    second_match_bucket,
)
from reprise.spec.predictor.context_evidence import (
    MAX_CONTEXT_EVIDENCE,
    MAX_SKIPPED,
    MAX_SKIPPED_VISITS,
)
from reprise.spec.predictor.features import (
    CONTEXT_MATCH,
    CONTEXT_RECENCY,
    CONTEXT_SKIPPED,
    CORPUS_COUNT,
    ESCAPE_NEAR,
)
from reprise.spec.runtime.layout import BOS

EvidenceRow = tuple[int, int, int, tuple[int, ...]]  # token, position, match, features


def same_ending(mine: list[int], theirs: list[int], most: int) -> int:
    """How many tokens the two share at their ends."""
    same = 0
    while same < min(len(mine), len(theirs), most) and mine[-1 - same] == theirs[-1 - same]:
        same += 1
    return same


def matched(text: list[int], begin: int, length: int) -> list[EvidenceRow]:
    """Where the last token occurs, newest first; only text[:length] is searched."""
    found = []
    for i in reversed(range(length - 1)):
        if text[i] != text[-1] or text[i + 1] == BOS:
            continue
        match = same_ending(text, text[: i + 1], 32)
        beyond = text[: len(text) - match - 1], text[: max(i - match, 0)]
        second = same_ending(*beyond, 8)
        cell = ((i >= begin) * MATCHES + match_bucket(match)) * SECOND_MATCHES
        features = (
            CONTEXT_MATCH + cell + second_match_bucket(second),
            CONTEXT_RECENCY + recency_bucket(len(text) - i) * 5 + coarse_match_bucket(match),
        )
        found.append((text[i + 1], -1, match, (*features, 0, 0, 0, 0)))
    return found[:MAX_CONTEXT_EVIDENCE]


def skipped(text: list[int], length: int) -> list[EvidenceRow]:
    """Where all but the last token match, newest first: it replaced theirs, or was put in."""
    found: list[EvidenceRow] = []
    keys = [i for i in reversed(range(length)) if len(text) > 1 and text[i] == text[-2]]
    for i in keys[:MAX_SKIPPED_VISITS]:
        if i + 2 >= length or text[i + 1] in (text[-1], BOS):
            continue
        match = same_ending(text[:-1], text[: i + 1], 16)
        if match < 2:
            continue
        if len(found) >= MAX_SKIPPED:
            return found
        for kind, token in ((0, text[i + 2]), (1, text[i + 1])):
            feature = CONTEXT_SKIPPED + kind * SECOND_MATCHES + second_match_bucket(match)
            if token != BOS:
                found.append((token, -1, 0, (feature, 0, 0, 0, 0, 0)))
    return found


def found_evidence(prediction: Any) -> list[EvidenceRow]:
    """What the trace holds between near answers and corpus."""
    trace = prediction.trace
    begin, end = int(trace["evidence_near_count"]), int(trace["evidence_count"])
    first = trace["evidence_feature"][:, 0]
    while end > begin and CORPUS_COUNT <= first[end - 1] < ESCAPE_NEAR:
        end -= 1
    columns = [trace[f"evidence_{name}"][begin:end].tolist() for name in ("token", "match")]
    positions = trace["evidence_position"][begin:end].tolist()
    features = [tuple(row) for row in trace["evidence_feature"][begin:end].tolist()]
    return list(zip(columns[0], positions, columns[1], features, strict=True))


def test_context_evidence(predictions: Sequence[Any]) -> None:
    kinds: Counter[str] = Counter()
    for prediction in predictions:
        text, begin, length = prediction.text, prediction.begin, prediction.length
        one, two = matched(text, begin, length), skipped(text, length)
        assert found_evidence(prediction) == one + two
        kinds["all matched kept"] += 0 < len(one) < MAX_CONTEXT_EVIDENCE
        kinds["matched cut"] += len(one) == MAX_CONTEXT_EVIDENCE
        kinds["all skipped kept"] += 0 < len(two) < MAX_SKIPPED
        kinds["skipped cut"] += len(two) >= MAX_SKIPPED
        kinds["long match"] += any(match > 12 for _, _, match, _ in one)
        kinds["in a draft"] += len(text) > length
    assert len(kinds) == 6
    assert min(kinds.values()) >= 10, kinds
