"""The suffix array's parts against sorting and counting by hand."""

import numpy as np

from reprise.spec.corpus.suffix_array import (
    SAMPLED,
    mark_removed,
    merge_suffixes,
    narrow,
    sort_suffixes,
    successors,
)
from reprise.spec.runtime.layout import END, MAX_ORDER, SUCCESSORS


def text_of(answers: int, length: int, vocabulary: int) -> np.ndarray:
    random = np.random.default_rng(3)
    parts = [[*random.integers(0, vocabulary, length), END] for _ in range(answers)]
    return np.array([*np.concatenate(parts), *[END] * (MAX_ORDER + 2)], np.int32)


def suffix(text: np.ndarray, begin: int) -> tuple[list[int], int]:
    tokens = text[begin : begin + MAX_ORDER + 1].tolist()
    if END in tokens:
        tokens = tokens[: tokens.index(END) + 1]
    return tokens, begin


def test_sort_and_merge() -> None:
    text = text_of(9, 31, 3)
    entries = np.array([i for i in range(9 * 32) if text[i] != END], np.int32)
    expected = sorted(entries.tolist(), key=lambda i: suffix(text, i))
    assert sort_suffixes(text, entries).tolist() == expected
    first, second = sort_suffixes(text, entries[::3]), sort_suffixes(text, entries[1::3])
    order = np.zeros(len(first) + len(second), np.int32)
    merge_suffixes(text, first, second, order)
    assert order.tolist() == [i for i in expected if i in set(order.tolist())]


def test_narrow_and_successors() -> None:
    text = text_of(40, 60, 4)
    entries = np.array([i for i in range(40 * 61) if text[i] != END], np.int32)
    order = sort_suffixes(text, entries)
    tokens, counts = np.zeros(SUCCESSORS, np.int32), np.zeros(SUCCESSORS, np.int32)
    for pattern in ([1], [1, 2], [3, 0, 1, 2, 2], [0, 0, 9]):
        low, high = 0, len(order)
        for depth, token in enumerate(pattern):
            low, high = narrow(text, order, depth, low, high, token)
        k = len(pattern)
        found = [i for i in entries if text[i : i + k].tolist() == pattern]
        assert sorted(order[low:high].tolist()) == sorted(found)
        number, total = successors(text, order, k, low, high, tokens, counts)
        assert total == len(found)
        got = dict(zip(tokens[:number].tolist(), counts[:number].tolist(), strict=True))
        after = [int(text[i + k]) for i in found if text[i + k] != END]
        exact = {token: after.count(token) for token in set(after)}
        if high - low <= SAMPLED:
            assert got == exact
        else:
            assert all(abs(got[token] - exact[token]) <= 2 * len(found) / SAMPLED for token in got)
            assert all(token in got for token in exact if exact[token] > 2 * len(found) / SAMPLED)
        assert sorted(counts[:number].tolist(), reverse=True) == counts[:number].tolist()


def test_removed_answers_are_found_but_not_counted() -> None:
    text = text_of(40, 60, 4)
    entries = np.array([i for i in range(40 * 61) if text[i] != END], np.int32)
    order = sort_suffixes(text, entries)
    whole = text.copy()
    for answer in range(0, 40, 3):
        mark_removed(text, 61 * answer, 61 * answer + 60)
    assert sort_suffixes(text, entries).tolist() == order.tolist()
    tokens, counts = np.zeros(SUCCESSORS, np.int32), np.zeros(SUCCESSORS, np.int32)
    for pattern in ([1], [1, 2, 3], [3, 0, 1, 2]):
        k = len(pattern)
        low, high = 0, len(order)
        for depth, token in enumerate(pattern):
            low, high = narrow(text, order, depth, low, high, token)
        found = [i for i in entries if whole[i : i + k].tolist() == pattern]
        assert high - low == len(found)
        number, total = successors(text, order, k, low, high, tokens, counts)
        got = dict(zip(tokens[:number].tolist(), counts[:number].tolist(), strict=True))
        after = [int(text[i + k]) for i in found if text[i + k] >= 0]
        exact = {token: after.count(token) for token in set(after)}
        if high - low <= SAMPLED:
            assert got == exact
            assert total == len([i for i in found if i // 61 % 3])
        else:
            assert all(abs(got[token] - exact[token]) <= 3 * len(found) / SAMPLED for token in got)
            assert abs(total - 26 / 40 * len(found)) < 0.25 * len(found)
