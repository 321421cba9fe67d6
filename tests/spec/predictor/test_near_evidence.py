"""Evidence from near answers against plain loops over lists."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from reprise.spec.predictor.buckets import (
    COARSE_MATCHES,
    DISTANCES,
    HITS,
    MATCHES,
    RANKS,
    SECOND_MATCHES,
    SIMILARITIES,
    UNKNOWN_DISTANCE,
    coarse_match_bucket,
    distance_bucket,
    hit_bucket,
    match_bucket,
    rank_bucket,
    second_match_bucket,
    similarity_bucket,
)
from reprise.spec.predictor.features import (
    MATCH_CELLS,
    NEAR_ANSWER_RANK,
    NEAR_CLAUSE_SWITCH,
    NEAR_DISTANCE,
    NEAR_HITS,
    NEAR_LIKENESS,
    NEAR_MATCH,
    NEAR_PROMPTS,
    NEAR_SKIPPED,
)
from reprise.spec.predictor.near_evidence import (
    MAX_NEAR_EVIDENCE,
    MAX_SKIPPED,
    MAX_SKIPPED_VISITS,
)
from reprise.spec.runtime.layout import BOS, END

EvidenceRow = tuple[int, int, int, tuple[int, ...]]  # token, position, match, features


def same_ending(mine: list[int], theirs: list[int], most: int) -> int:
    """How many tokens the two share at their ends."""
    same = 0
    while same < min(len(mine), len(theirs), most) and mine[-1 - same] == theirs[-1 - same]:
        same += 1
    return same


def match_and_second(own: list[int], theirs: list[int]) -> tuple[int, int]:
    """(match, length matched beyond one substitution); reaching an answer's start says more."""
    match = same_ending(own, theirs, 32)
    if BOS in theirs[-match:]:
        return match + 4, 8
    rest = theirs[:-match]
    if rest == [BOS]:
        return match, 4
    second = same_ending(own[: -match - 1], rest[:-1], 8)
    return match, 8 if BOS in rest[:-1][len(rest) - 1 - second :] else second


class PlainNear:
    """All near answers of a request, one after the other: BOS, tokens, END."""

    def __init__(self, prediction: Any) -> None:
        self.own = prediction.text[prediction.begin :]
        self.pointers = prediction.trace["pointers"].tolist()
        self.hits = prediction.trace["hits"].tolist()
        self.near = prediction.near
        self.prompt = prediction.text[: prediction.begin]
        self.texts = [[BOS, *near.response_token_ids.tolist()] for near in self.near]
        self.starts: list[int] = []
        self.everything: list[int] = []
        for text in self.texts:
            self.starts.append(len(self.everything))
            self.everything += [*text, END]

    def rank(self, near: int) -> int:
        """Place among the answers of its clause."""
        return sum(other.clause == self.near[near].clause for other in self.near[:near])

    def piece(self, near: int, k: int, match: int, first: int, block: int) -> EvidenceRow:
        """The evidence that predicts token `k` of a near answer."""
        token, position, cell = (
            self.texts[near][k],
            self.starts[near] + k,
            coarse_match_bucket(match),
        )
        answer, pointer = self.near[near], self.pointers[near]
        distance = distance_bucket(position - pointer) if pointer >= 0 else UNKNOWN_DISTANCE
        req_idx = 2 * (token in answer.prompt_token_ids.tolist()) + (token in self.prompt)
        features = (
            first,
            NEAR_DISTANCE + block * DISTANCES + distance,
            NEAR_LIKENESS + similarity_bucket(answer.similarity) * 5 + cell,
            NEAR_ANSWER_RANK + rank_bucket(self.rank(near)) * 5 + cell,
            NEAR_PROMPTS + req_idx * 5 + cell,
            NEAR_HITS + hit_bucket(self.hits[near]) * 5 + cell,
        )
        return token, position, match, features

    def matched(self) -> list[EvidenceRow]:
        """Where the last token occurs."""
        found = []
        for near, text in enumerate(self.texts):
            for k in range(len(text) - 1):
                if text[k] == self.own[-1]:
                    match, second = match_and_second(self.own, text[: k + 1])
                    bucket = match_bucket(match)
                    first = NEAR_MATCH + bucket * SECOND_MATCHES + second_match_bucket(second)
                    found.append(self.piece(near, k + 1, match, first, bucket))
        return found[:MAX_NEAR_EVIDENCE]

    def skipped(self) -> list[EvidenceRow]:
        """Where all but the last token match: the last one replaced theirs, or was put in."""
        found: list[EvidenceRow] = []
        self.visits = 0
        for near, text in enumerate(self.texts if len(self.own) > 1 else []):
            for k in range(len(text)):
                if text[k] != self.own[-2]:
                    continue
                self.visits += 1
                if self.visits > MAX_SKIPPED_VISITS:
                    return found
                if k + 1 == len(text) or text[k + 1] == self.own[-1]:
                    continue
                match = same_ending(self.own[:-1], text[: k + 1], 16)
                if match == 1 and text[k] != BOS:
                    continue
                if match > 1 and text[k + 1 - match] == BOS:
                    match = 16
                if len(found) >= MAX_SKIPPED:
                    return found
                for kind, next_k in ((0, k + 2), (1, k + 1)):
                    if next_k < len(text):
                        first = NEAR_SKIPPED + kind * SECOND_MATCHES + second_match_bucket(match)
                        found.append(self.piece(near, next_k, 0, first, 10 + kind))
        return found

    def clause_switches(self) -> list[EvidenceRow]:
        """First tokens of the two best answers of each other clause than the leader's."""
        if len({near.clause for near in self.near}) < 2:
            return []
        leader = max(range(len(self.near)), key=lambda near: (self.hits[near], -near))
        rest = self.everything[max(self.pointers[leader], 0) :]
        left = rest.index(END) if END in rest else len(rest)
        nearness = {0: 0, 1: 0, 2: 1, 3: 2}.get(left, 3)
        first = NEAR_CLAUSE_SWITCH + nearness * HITS + hit_bucket(self.hits[leader])
        return [
            self.piece(near, 1, 0, first, 11)
            for near, answer in enumerate(self.near)
            if answer.clause != self.near[leader].clause and self.rank(near) < 2
        ]


def found_evidence(prediction: Any) -> list[EvidenceRow]:
    """What the trace holds."""
    trace = prediction.trace
    count = int(trace["evidence_near_count"])
    columns = [
        trace[f"evidence_{name}"][:count].tolist() for name in ("token", "position", "match")
    ]
    features = [tuple(row) for row in trace["evidence_feature"][:count].tolist()]
    return list(zip(*columns, features, strict=True))


def test_near_evidence(predictions: Sequence[Any]) -> None:
    kinds: Counter[str] = Counter()
    for prediction in predictions:
        plain = PlainNear(prediction)
        matched, skipped, clause_switches = (
            plain.matched(),
            plain.skipped(),
            plain.clause_switches(),
        )
        assert found_evidence(prediction) == matched + skipped + clause_switches
        kinds["all matched kept"] += 0 < len(matched) < MAX_NEAR_EVIDENCE
        kinds["matched cut"] += len(matched) == MAX_NEAR_EVIDENCE
        kinds["long match"] += any(match > 12 for _, _, match, _ in matched)
        kinds["all skipped kept"] += 0 < len(skipped) < MAX_SKIPPED
        kinds["skipped cut"] += len(skipped) >= MAX_SKIPPED
        kinds["skipped visits cut"] += plain.visits > MAX_SKIPPED_VISITS
        kinds["clause_switches"] += len(clause_switches) > 0
    assert min(kinds.values()) >= 10, kinds


def test_most_features_occur(predictions: Sequence[Any]) -> None:
    """The inputs reach what they are to test."""
    features = [p.trace["evidence_feature"][: p.trace["evidence_near_count"]] for p in predictions]
    seen = np.unique(np.concatenate([rows.ravel() for rows in features]))
    sizes = {
        NEAR_MATCH: MATCH_CELLS,
        NEAR_DISTANCE: (MATCHES + 2) * DISTANCES,
        NEAR_LIKENESS: SIMILARITIES * COARSE_MATCHES,
        NEAR_ANSWER_RANK: RANKS * COARSE_MATCHES,
        NEAR_PROMPTS: 4 * COARSE_MATCHES,
        NEAR_HITS: HITS * COARSE_MATCHES,
        NEAR_CLAUSE_SWITCH: 4 * HITS,
    }
    for begin, size in sizes.items():
        assert ((seen >= begin) & (seen < begin + size)).sum() >= size // 2
