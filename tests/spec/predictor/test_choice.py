"""The choice's features and probabilities against plain counting."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from reprise.spec.predictor.buckets import COUNTS, count_bucket, share_bucket
from reprise.spec.predictor.candidate_features import MIN_MATCHES, RECENT_HITS
from reprise.spec.predictor.features import (
    ALIGNED_CELL,
    BEST_EVIDENCE,
    CANDIDATE_RANK,
    CELL,
    CONTEXT_CELL,
    CORPUS_COUNT,
    DEPTH_CELL,
    DEPTH_SHARES,
    ESCAPE_MATCHES,
    ESCAPE_NEAR,
    ESCAPE_ORDERS,
    ESCAPE_PROB,
    HASHED_PAIR,
    HASHED_TOKEN,
    HASHED_TOKENS,
    HASHED_TRIPLE,
    HASHED_TUPLES,
    NEAR_CELL,
    NEAR_PRESENCE,
    NEAR_SHARES,
    ORDER_CELL,
    PRESENCE,
    PROB,
    PROB_BINS,
    PROB_ORDER,
    PROB_REACH,
    REACH,
    SHARES,
    SKIPPED_CELL,
)
from reprise.spec.runtime.layout import (
    CONTEXT,
    CORPUS,
    MAX_CANDIDATES,
    NEAR_ANSWER,
    USED_SKIPPED,
    USED_SUCCESSORS,
)


class EvidenceRow(NamedTuple):
    token: int
    rank: int
    match: int
    weight: np.float32
    features: list[int]
    source: int


class Counts(NamedTuple):
    """How many positions speak for a candidate, and how many there are in all."""

    own: int
    total: int

    @property
    def cell(self) -> int:
        absent_or_count = count_bucket(self.own) + 1 if self.own else 0
        return absent_or_count * 7 + count_bucket(self.total)

    @property
    def share(self) -> int:
        return share_bucket(self.own, self.total)

    @property
    def near_share(self) -> int:
        return 4 if self.share == 3 and self.own > 1 else self.share


def evidence_of(prediction: Any) -> list[EvidenceRow]:
    """The trace's evidence with their sources."""
    trace = prediction.trace
    made = []
    for i in range(int(trace["evidence_count"])):
        features = trace["evidence_feature"][i].tolist()
        in_corpus = CORPUS_COUNT <= features[0] < ESCAPE_NEAR
        in_near = i < trace["evidence_near_count"]
        made.append(
            EvidenceRow(
                int(trace["evidence_token"][i]),
                int(trace["evidence_position"][i]),
                int(trace["evidence_match"][i]),
                trace["evidence_weight"][i],
                features,
                NEAR_ANSWER if in_near else CORPUS if in_corpus else CONTEXT,
            )
        )
    return made


def mixture_probs(evidence: list[EvidenceRow]) -> dict[int, np.float32]:
    """Token to probability, the likeliest first, in the arithmetic of the compiled code."""
    probs: dict[int, np.float32] = {}
    for piece in evidence:
        probs[piece.token] = probs.get(piece.token, np.float32(0)) + piece.weight
    ranked = sorted(probs, key=lambda token: -probs[token])
    return {token: probs[token] for token in ranked[:MAX_CANDIDATES]}


def prob_bin(prob: float) -> tuple[int, float]:
    """(bin, share of the next bin) of a probability's logarithm."""
    at = min(max((math.log(prob + 1e-9) + 8.5) * 2.0, 0.0), PROB_BINS - 2.01)
    return int(at), at - int(at)


def match_counts(evidence: list[EvidenceRow], source: int, token: int) -> list[Counts]:
    """Per least match length: evidence of a source that match so far, for a token and in all."""
    matches = [(c.token, c.match) for c in evidence if c.source == source]
    return [
        Counts(
            sum(match >= least and other == token for other, match in matches),
            sum(match >= least for _, match in matches),
        )
        for least in MIN_MATCHES
    ]


def aligned_counts(prediction: Any, evidence: list[EvidenceRow], token: int) -> list[Counts]:
    """Evidence at their near answer's pointer; and of these, those of recent hits."""
    pointers, hits = prediction.trace["pointers"].tolist(), prediction.trace["hits"].tolist()
    ends = np.cumsum([len(near.response_token_ids) + 2 for near in prediction.near])
    at = []
    for piece in evidence:
        if piece.source == NEAR_ANSWER:
            near = int(np.searchsorted(ends, piece.rank, side="right"))
            if pointers[near] == piece.rank:
                at.append((piece.token, hits[near] >= RECENT_HITS))
    return [
        Counts(
            sum(other == token and (recent or not only) for other, recent in at),
            sum(recent or not only for _, recent in at),
        )
        for only in (False, True)
    ]


def order_counts(prediction: Any, token: int) -> list[Counts]:
    """Per order up to the longest found: how often the token followed, and anything."""
    orders = prediction.orders
    top = max((o + 1 for o, (total, _) in enumerate(orders) if total), default=0)
    return [
        Counts(counts[token] if token in list(counts)[:USED_SUCCESSORS] else 0, total)
        for total, counts in orders[:top]
    ]


def skipped_counts(prediction: Any, token: int) -> list[Counts]:
    """Per order of the tokens before the last: how often the token came beyond it, and anything."""
    return [
        Counts(counts[token] if token in list(counts)[:USED_SKIPPED] else 0, total)
        for total, counts in prediction.beyond
    ]


def hashed(prediction: Any, token: int) -> list[int]:
    """The candidate alone, after the last token and after the last two, each as one of few."""
    before, last = prediction.text[-2], prediction.text[-1]
    alone = token * 0x9E3779B1
    pair = alone + (last + 3) * 0x85EBCA77
    triple = pair + (before + 3) * 0xC2B2AE3D
    return [
        HASHED_TOKEN + (alone >> 9) % HASHED_TOKENS,
        HASHED_PAIR + (pair >> 11) % HASHED_TUPLES,
        HASHED_TRIPLE + (triple >> 11) % HASHED_TUPLES,
    ]


def presence(prediction: Any, token: int) -> int:
    """Up to twice in the prompt, up to twice in the output."""
    prompt = prediction.text[: prediction.begin]
    output = prediction.text[prediction.begin : prediction.length]
    return 3 * min(2, prompt.count(token)) + min(2, output.count(token))


def near_presence(prediction: Any, token: int) -> int:
    """How many near answers have the token, and how many there are."""
    answers = [near.response_token_ids.tolist() for near in prediction.near]
    found = sum(token in answer for answer in answers)
    many = sum(len(answers) >= least for least in (4, 12, 24))
    return many * 7 + (count_bucket(found) + 1 if found else 0)


def reach(counts: list[Counts]) -> int:
    """The longest length, from 1 on, at which the candidate is found; 0: at none."""
    return max((k + 1 for k, at in enumerate(counts) if at.own), default=0)


def half(longest: int) -> int:
    return min(4, (longest + 1) // 2)


def features_of(
    prediction: Any, evidence: list[EvidenceRow], token: int, rank: int, prob: float
) -> list[int]:
    """All features of one candidate, in order."""
    near = match_counts(evidence, NEAR_ANSWER, token)
    context = match_counts(evidence, CONTEXT, token)
    orders = order_counts(prediction, token)
    best = max((c for c in evidence if c.token == token), key=lambda c: c.weight)
    low, _ = prob_bin(prob)
    block = PROB + (1 + best.source) * PROB_BINS
    features = [PROB + low, PROB + low + 1, block + low, block + low + 1]
    features += [
        PRESENCE + presence(prediction, token) * 3 + best.source,
        CANDIDATE_RANK + min(rank, 4),
    ]
    features.append(NEAR_PRESENCE + near_presence(prediction, token) * 3 + best.source)
    features += [ORDER_CELL + o * CELL + at.cell for o, at in enumerate(orders)]
    longest = orders[::-1][:3]
    features += [DEPTH_CELL + depth * CELL + at.cell for depth, at in enumerate(longest)]
    if orders:
        shares = 0
        for at in longest:
            shares = 4 * shares + at.share
        features.append(DEPTH_SHARES + shares * COUNTS + count_bucket(orders[-1].total))
    known = [k for k, at in enumerate(near) if at.total]
    features += [NEAR_CELL + k * CELL + near[k].cell for k in known]
    if known:
        share = near[known[-1]].near_share * 5 + near[max(known[-1] - 1, 0)].near_share
        features.append(NEAR_SHARES + known[-1] * 25 + share)
    features += [CONTEXT_CELL + k * CELL + at.cell for k, at in enumerate(context) if at.total]
    for o, at in enumerate(skipped_counts(prediction, token)):
        if at.total:
            features.append(SKIPPED_CELL + o * CELL + at.cell)
    near_reach, order_reach = reach(near), half(reach(orders))
    features.append(REACH + (near_reach * 5 + half(reach(context))) * 5 + order_reach)
    last = known[-1] if known else 0
    corpus_share = orders[-1].share if orders else 0
    shares = (near[last].near_share * 4 + corpus_share) * 4 + last // 2
    features.append(SHARES + shares * 5 + half(len(orders)))
    features += [PROB_REACH + low * 9 + near_reach, PROB_ORDER + low * 5 + order_reach]
    for k, at in enumerate(aligned_counts(prediction, evidence, token)):
        if at.total:
            features.append(ALIGNED_CELL + k * CELL + at.cell)
    features += hashed(prediction, token)
    return features + [BEST_EVIDENCE + f for f in best.features if f]


def test_features_of_candidates(predictions: Sequence[Any]) -> None:
    kinds: Counter[str] = Counter()
    for prediction in predictions[::3]:
        trace, evidence = prediction.trace, evidence_of(prediction)
        ranked = mixture_probs(evidence)
        assert trace["candidate_count"] == len(ranked)
        assert trace["candidate_token"][: len(ranked)].tolist() == list(ranked)
        for rank, (token, prob) in enumerate(ranked.items()):
            count = int(trace["candidate_feature_count"][rank])
            found = trace["candidate_feature"][rank, :count].tolist()
            assert found == features_of(prediction, evidence, token, rank, float(prob))
        aligned = any(aligned_counts(prediction, evidence, -9)[1])
        kinds["aligned"] += aligned
        kinds["more candidates than kept"] += len({c.token for c in evidence}) > MAX_CANDIDATES
        kinds["all sources"] += len({c.source for c in evidence}) == 3
    assert len(kinds) == 3
    assert min(kinds.values()) >= 1, kinds


def test_escape_features(predictions: Sequence[Any]) -> None:
    for prediction in predictions:
        evidence = evidence_of(prediction)
        near, context = (
            min(10, max((c.match for c in evidence if c.source == source), default=0))
            for source in (NEAR_ANSWER, CONTEXT)
        )
        low, _ = prob_bin(float(prediction.trace["escape_weight"]))
        orders = len(order_counts(prediction, 0))
        assert prediction.trace["escape_feature"][3:7].tolist() == [
            ESCAPE_PROB + low,
            ESCAPE_PROB + low + 1,
            ESCAPE_MATCHES + near * 11 + context,
            ESCAPE_ORDERS + orders * 11 + near,
        ]


def test_probabilities_are_a_softmax_of_the_features_weights(predictions: Sequence[Any]) -> None:
    for prediction in predictions:
        trace, table = prediction.trace, prediction.weights["choice"].astype(np.float64)
        ranked = mixture_probs(evidence_of(prediction))
        scores = []
        for rank, prob in enumerate(ranked.values()):
            _, fraction = prob_bin(float(prob))
            assert trace["candidate_fraction"][rank] == pytest.approx(fraction, abs=1e-5)
            own = table[trace["candidate_feature"][rank]]
            own = own[: trace["candidate_feature_count"][rank]]
            scores.append(
                (1 - fraction) * (own[0] + own[2])
                + fraction * (own[1] + own[3])
                + float(own[4:].sum())
            )
        _, fraction = prob_bin(float(trace["escape_weight"]))
        own = table[trace["escape_feature"][3:7]]
        scores.append((1 - fraction) * own[0] + fraction * own[1] + own[2] + own[3])
        expected = np.exp(np.array(scores) - max(scores))
        expected /= expected.sum()
        found = trace["candidate_prob"]
        assert found[: len(ranked)] == pytest.approx(expected[:-1], abs=1e-5)
        assert found[MAX_CANDIDATES] == pytest.approx(expected[-1], abs=1e-5)
        if prediction.after is not None:
            likeliest = list(ranked)[int(np.argmax(found[: len(ranked)]))]
            assert prediction.drafted == likeliest
