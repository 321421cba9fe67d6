"""Components from near answers against plain loops over lists."""

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
    NEAR_DISTANCE,
    NEAR_HITS,
    NEAR_LIKENESS,
    NEAR_MATCH,
    NEAR_PLACE,
    NEAR_SKIPPED,
    NEAR_SLOT,
    NEAR_TAKEOVER,
)
from reprise.spec.predictor.near_components import (
    MAX_NEAR_COMPONENTS,
    MAX_SKIPPED,
    MAX_SKIPPED_VISITS,
)
from reprise.spec.runtime.layout import BOS, END

Component = tuple[int, int, int, tuple[int, ...]]  # token, place, match, features


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
        self.pointers = prediction.trail["pointers"].tolist()
        self.hits = prediction.trail["hits"].tolist()
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

    def component(self, near: int, k: int, match: int, first: int, block: int) -> Component:
        """The component that predicts token `k` of a near answer."""
        token, place, cell = self.texts[near][k], self.starts[near] + k, coarse_match_bucket(match)
        answer, pointer = self.near[near], self.pointers[near]
        distance = distance_bucket(place - pointer) if pointer >= 0 else UNKNOWN_DISTANCE
        slot = 2 * (token in answer.prompt_token_ids.tolist()) + (token in self.prompt)
        features = (
            first,
            NEAR_DISTANCE + block * DISTANCES + distance,
            NEAR_LIKENESS + similarity_bucket(answer.similarity) * 5 + cell,
            NEAR_PLACE + rank_bucket(self.rank(near)) * 5 + cell,
            NEAR_SLOT + slot * 5 + cell,
            NEAR_HITS + hit_bucket(self.hits[near]) * 5 + cell,
        )
        return token, place, match, features

    def matched(self) -> list[Component]:
        """Where the last token occurs."""
        found = []
        for near, text in enumerate(self.texts):
            for k in range(len(text) - 1):
                if text[k] == self.own[-1]:
                    match, second = match_and_second(self.own, text[: k + 1])
                    bucket = match_bucket(match)
                    first = NEAR_MATCH + bucket * SECOND_MATCHES + second_match_bucket(second)
                    found.append(self.component(near, k + 1, match, first, bucket))
        return found[:MAX_NEAR_COMPONENTS]

    def skipped(self) -> list[Component]:
        """Where all but the last token match: the last one replaced theirs, or was put in."""
        found: list[Component] = []
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
                        found.append(self.component(near, next_k, 0, first, 10 + kind))
        return found

    def takeovers(self) -> list[Component]:
        """First tokens of the two best answers of each other clause than the leader's."""
        if len({near.clause for near in self.near}) < 2:
            return []
        leader = max(range(len(self.near)), key=lambda near: (self.hits[near], -near))
        rest = self.everything[max(self.pointers[leader], 0) :]
        left = rest.index(END) if END in rest else len(rest)
        nearness = {0: 0, 1: 0, 2: 1, 3: 2}.get(left, 3)
        first = NEAR_TAKEOVER + nearness * HITS + hit_bucket(self.hits[leader])
        return [
            self.component(near, 1, 0, first, 11)
            for near, answer in enumerate(self.near)
            if answer.clause != self.near[leader].clause and self.rank(near) < 2
        ]


def found_components(prediction: Any) -> list[Component]:
    """What the trail holds."""
    trail = prediction.trail
    count = int(trail["component_near_count"])
    columns = [trail[f"component_{name}"][:count].tolist() for name in ("token", "place", "match")]
    features = [tuple(row) for row in trail["component_feature"][:count].tolist()]
    return list(zip(*columns, features, strict=True))


def test_near_components(predictions: Sequence[Any]) -> None:
    kinds: Counter[str] = Counter()
    for prediction in predictions:
        plain = PlainNear(prediction)
        matched, skipped, takeovers = plain.matched(), plain.skipped(), plain.takeovers()
        assert found_components(prediction) == matched + skipped + takeovers
        kinds["all matched kept"] += 0 < len(matched) < MAX_NEAR_COMPONENTS
        kinds["matched cut"] += len(matched) == MAX_NEAR_COMPONENTS
        kinds["long match"] += any(match > 12 for _, _, match, _ in matched)
        kinds["all skipped kept"] += 0 < len(skipped) < MAX_SKIPPED
        kinds["skipped cut"] += len(skipped) >= MAX_SKIPPED
        kinds["skipped visits cut"] += plain.visits > MAX_SKIPPED_VISITS
        kinds["takeovers"] += len(takeovers) > 0
    assert min(kinds.values()) >= 10, kinds


def test_most_features_occur(predictions: Sequence[Any]) -> None:
    """The inputs reach what they are to test."""
    features = [
        p.trail["component_feature"][: p.trail["component_near_count"]] for p in predictions
    ]
    seen = np.unique(np.concatenate([rows.ravel() for rows in features]))
    sizes = {
        NEAR_MATCH: MATCH_CELLS,
        NEAR_DISTANCE: (MATCHES + 2) * DISTANCES,
        NEAR_LIKENESS: SIMILARITIES * COARSE_MATCHES,
        NEAR_PLACE: RANKS * COARSE_MATCHES,
        NEAR_SLOT: 4 * COARSE_MATCHES,
        NEAR_HITS: HITS * COARSE_MATCHES,
        NEAR_TAKEOVER: 4 * HITS,
    }
    for begin, size in sizes.items():
        assert ((seen >= begin) & (seen < begin + size)).sum() >= size // 2
