"""Predictions of a real provider over random small texts, with all that they were made from."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest

from reprise.spec import DraftConfig, DraftProvider
from reprise.spec.api.near_answer import PlainNearAnswer
from reprise.spec.batching.request import Request
from reprise.spec.corpus import corpora as corpora_module
from reprise.spec.corpus import corpus as corpus_module
from reprise.spec.corpus.suffix_array import SAMPLED
from reprise.spec.predictor.corpus_evidence import MAX_SKIPPED_LOOKS
from reprise.spec.runtime.layout import (
    BEGIN,
    BOS,
    END,
    EVIDENCE_FEATURES,
    LENGTH,
    MAX_EVIDENCE,
    ORDERS,
    PREDICTED,
    REMOVED,
    SKIPPED_ORDERS,
    SUCCESSORS,
    TOKEN,
)

LONGEST_DRAFT = 6


Answers = list[list[int]]
SortedAnswers = list[tuple[list[int], bool]]  # in the suffix array; whether it was not removed
OrderCounts = tuple[int, dict[int, int]]


class Prediction(NamedTuple):
    """One position of a trace, copied, and the plain lists that it was predicted from."""

    text: list[int]  # prompt, BOS, output, draft so far
    begin: int  # index of BOS
    length: int  # of text without the draft
    near: list[PlainNearAnswer]  # in the order of the request
    sorted_answers: SortedAnswers
    recent_answers: Answers  # its chains hold them
    orders: list[OrderCounts]  # counted by hand: how often the last tokens, and what followed
    beyond: list[OrderCounts]  # the same for the tokens before the last, another in its position
    trace: dict[str, Any]  # field to array, of this position
    after: dict[str, Any] | None  # of the next one, if the draft went on
    drafted: int  # the token drafted here, if it did
    weights: dict[str, Any]


@functools.cache
def sorted_suffixes(
    answers: tuple[tuple[tuple[int, ...], bool], ...],
) -> list[tuple[list[int], bool]]:
    """What follows each position of the answers, in the order of the first 25 tokens, and whether
    the answer counts."""
    suffixes = []
    for answer, counts in answers:
        text = [BOS, *answer, END]
        suffixes += [(text[i:][:25], counts) for i in range(len(text) - 1)]
    return sorted(suffixes, key=lambda suffix: suffix[0])


def suffixes_of(answers: SortedAnswers) -> list[tuple[list[int], bool]]:
    return sorted_suffixes(tuple((tuple(answer), counts) for answer, counts in answers))


def old_successors(suffixes: list[tuple[list[int], bool]], pattern: list[int]) -> OrderCounts:
    """(positions of the pattern, the most frequent next tokens with their counts): exact for few
    positions, sampled at even distances for many."""
    size = len(pattern)
    following = [(suffix[size], is_in) for suffix, is_in in suffixes if suffix[:size] == pattern]
    total = len(following)
    if total > SAMPLED:
        looks = [following[(2 * i + 1) * total // (2 * SAMPLED)] for i in range(SAMPLED)]
        found = Counter(token for token, is_in in looks if is_in)
        counts = {token: max(1, n * total // SAMPLED) for token, n in found.items()}
        total -= sum(not is_in for _, is_in in looks) * total // SAMPLED
    else:
        counts = dict(Counter(token for token, is_in in following if is_in))
        total = sum(is_in for _, is_in in following)
    counts.pop(END, None)
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    return total, {token: counts[token] for token in ranked[:SUCCESSORS]}


def add_recent(answers: Answers, own: list[int], found: list[OrderCounts]) -> list[OrderCounts]:
    """Add the counts of the recent answers, newest positions first."""
    totals, counts = [total for total, _ in found], [dict(counts) for _, counts in found]
    for answer in reversed(answers):
        text = [BOS, *answer]
        for i in reversed(range(len(text) - 1)):
            for o, order in enumerate(ORDERS.tolist()):
                if order > min(i + 1, len(own)) or text[i + 1 - order : i + 1] != own[-order:]:
                    break
                totals[o] += 1
                token = text[i + 1]
                if token in counts[o] or len(counts[o]) < SUCCESSORS:
                    counts[o][token] = counts[o].get(token, 0) + 1
    return list(zip(totals, counts, strict=True))


def counted(
    sorted_answers: SortedAnswers, recent_answers: Answers, own: list[int]
) -> list[OrderCounts]:
    """Per order (number, next tokens with their counts) after `own`: BOS, output, draft so far."""
    suffixes = suffixes_of(sorted_answers)
    old = [
        old_successors(suffixes, own[-order:]) if order <= len(own) else (0, {})
        for order in ORDERS.tolist()
    ]
    return add_recent(recent_answers, own, old)


def counted_beyond(
    sorted_answers: SortedAnswers, recent_answers: Answers, own: list[int]
) -> list[OrderCounts]:
    """Per order (number, tokens with their counts, the most frequent first) of what comes after the
    tokens before the last and one token that is not the last."""
    suffixes = suffixes_of(sorted_answers)
    recent: list[list[int]] = []
    for answer in reversed(recent_answers):
        text = [BOS, *answer, END]
        recent += [text[: i + 3] for i in reversed(range(len(text) - 1))]
    found = []
    for k in SKIPPED_ORDERS.tolist():
        pattern = own[:-1][-k:]
        following: list[int] = []
        if len(own) > k:
            positions = [(suffix[k:], is_in) for suffix, is_in in suffixes if suffix[:k] == pattern]
            looks = min(len(positions), MAX_SKIPPED_LOOKS)
            if k > 1 or len(positions) <= MAX_SKIPPED_LOOKS:
                at = [positions[len(positions) * look // looks] for look in range(looks)]
                following += [
                    pair[1] for pair, is_in in at if is_in and own[-1] != pair[0] != END != pair[1]
                ]
            following += [
                text[-1]
                for text in recent
                if text[:-2][-k:] == pattern and own[-1] != text[-2] != END != text[-1]
            ]
        counts: dict[int, int] = {}
        for token in following:
            if token in counts or len(counts) < SUCCESSORS:
                counts[token] = counts.get(token, 0) + 1
        ranked = sorted(counts, key=lambda token: -counts[token])
        found.append((len(following), {token: counts[token] for token in ranked}))
    return found


def random_answers(random: np.random.Generator, count: int, tokens: int) -> list[list[int]]:
    """Answers put together from blocks that they share, one token in ten replaced."""
    blocks = random.integers(0, tokens, (max(5, tokens // 6), 7))
    answers = []
    for _ in range(count):
        answer = blocks[random.integers(0, len(blocks), int(random.integers(1, 8)))].ravel()
        replaced = random.random(len(answer)) < 0.1
        answer[replaced] = random.integers(0, tokens, int(replaced.sum()))
        answers.append(answer[: len(answer) - int(random.integers(0, 6))].tolist())
    return answers


def predictions_of(seed: int, tokens: int) -> Iterator[Prediction]:
    """Follow a few requests, the corpus changing between steps; yields all that is predicted."""
    random = np.random.default_rng(seed)
    provider = DraftProvider(DraftConfig(verify_cost=0.002, num_speculative_tokens=LONGEST_DRAFT))
    answers = random_answers(random, 60, tokens)
    cached: dict[str, list[int]] = {}
    for number in range(20):
        cached[str(number)] = answers[number]
        provider.add_answer(str(number), answers[number])
    for number in range(20, 26):
        provider.start("r", answers[number])
        near = {
            str(k): PlainNearAnswer(
                str(k),
                float(random.uniform(0.2, 1.0)),
                np.array(answers[int(random.integers(0, 60))], np.int32),
                np.array(answers[k], np.int32),
                int(random.integers(1, 4)) if number % 2 else 0,
            )
            for k in random.choice(60, size=int(random.integers(0, 16)), replace=False).tolist()
        }
        target = [token for k in random.integers(0, 60, 3) for token in answers[k]]
        attach_at = 0 if number % 3 else 5
        at = 0
        while at < len(target):
            if at >= attach_at and near:
                provider.attach("r", list(near.values()))
                attach_at = len(target)
            draft = provider.propose("r", limit=LONGEST_DRAFT)
            seen = list(_predicted(provider, near, cached))
            yield from seen
            accepted = 0
            while accepted < min(len(draft), len(target) - at):
                if draft[accepted] != target[at + accepted]:
                    break
                accepted += 1
            provider.observe("r", target[at : at + accepted + 1])
            at += accepted + 1
            if random.random() < 0.3:
                name = str(int(random.integers(0, 60)))
                if cached.pop(name, None) is not None:
                    provider.remove_answer(name)
                else:
                    cached[name] = answers[int(name)]
                    provider.add_answer(name, answers[int(name)])
        provider.finish("r")
    assert provider.stats().errors == 0


def answers_in(text: list[int], entries: set[int]) -> SortedAnswers:
    """The answers of a corpus's text with their entries, removed ones as well."""
    ends = [i for i, token in enumerate(text) if token == END]
    begins = [0, *(end + 1 for end in ends[:-1])]
    answers = []
    for begin, end in zip(begins, ends, strict=True) if ends else ():
        tokens = text[begin + 1 : end]
        is_in = tokens[0] >= 0
        assert len(entries.intersection(range(begin, end + 1))) in (0, end - begin)
        if begin in entries:
            answers.append((tokens if is_in else [token - REMOVED for token in tokens], is_in))
    return answers


def _predicted(
    provider: DraftProvider, near: dict[str, PlainNearAnswer], cached: dict[str, list[int]]
) -> Iterator[Prediction]:
    request = provider._live["r"]
    assert isinstance(request, Request)
    row = provider._table.rows[request.req_idx]
    (namespace,) = provider._corpora._namespaces.values()
    corpus = namespace.corpus
    assert corpus is not None
    positions = {name: corpus._answers.position_of(name)[0] for name in cached}
    recent = {name for name, begin in positions.items() if begin >= corpus._recent}
    recent_answers = [cached[name] for name in sorted(recent, key=lambda name: positions[name])]
    text = corpus._text[: corpus._recent].tolist()
    sorted_answers = answers_in(text, set(corpus._order.tolist()))
    kept = [
        cached[name] for name in sorted(positions, key=positions.__getitem__) if name not in recent
    ]
    assert [answer for answer, is_in in sorted_answers if is_in] == kept
    predicted = int(row[PREDICTED])
    trace = [
        {
            name: field[request.req_idx, position].copy()
            for name, field in provider._table.trace._asdict().items()
        }
        for position in range(predicted)
    ]
    weights = {name: table.copy() for name, table in provider._learned.tables._asdict().items()}
    for position in range(predicted):
        length = int(row[LENGTH])
        text, begin = request._positions[: length + position, TOKEN].tolist(), int(row[BEGIN])
        yield Prediction(
            text=text,
            begin=begin,
            length=length,
            near=[near[name] for name in request.answer_ids],
            sorted_answers=sorted_answers,
            recent_answers=recent_answers,
            orders=counted(sorted_answers, recent_answers, text[begin:]),
            beyond=counted_beyond(sorted_answers, recent_answers, text[begin:]),
            trace=trace[position],
            after=trace[position + 1] if position + 1 < predicted else None,
            drafted=int(trace[position]["tokens"]),
            weights=weights,
        )


@pytest.fixture(scope="session")
def predictions() -> Sequence[Prediction]:
    """Predictions over few tokens and over more; merges happen in their corpora."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus_module, "MAX_RECENT", 130)  # fewer of any token than are visited
        patch.setattr(corpus_module, "MAX_REMOVED", 300)  # many are left where they are
        patch.setattr(corpora_module, "SMALL_TOKENS", 80)
        made = [
            prediction
            for seed, tokens in ((1, 3), (2, 4), (3, 9), (4, 150))
            for prediction in predictions_of(seed, tokens)
        ]
    return made


@pytest.fixture(scope="session")
def evidence() -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Makes the tokens and features of so many evidence up, the same ones for each number."""

    def make(count: int) -> tuple[np.ndarray, np.ndarray]:
        random = np.random.default_rng(count)
        tokens = np.zeros(MAX_EVIDENCE, np.int32)
        tokens[:count] = random.integers(0, 5, count)
        features = np.zeros((MAX_EVIDENCE, EVIDENCE_FEATURES), np.int16)
        features[:count, :4] = random.integers(1, 200, (count, 4))
        return tokens, features

    return make
