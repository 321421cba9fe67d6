"""The peers draft as they do inside vLLM."""

import numpy as np
import pytest

from reprise.eval.replay.peer_drafters import (
    NGRAM_LENGTH,
    SUFFIX_LONG,
    SUFFIX_SWEEP,
    NgramDrafter,
    SuffixDrafter,
    SuffixSetting,
    find_ngram,
)
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.eval.replay.traces import TraceRow


def row(prompt: IntArray, response: IntArray, *, name: str = "r") -> TokenRow:
    return TokenRow(name, prompt, response, None, TraceRow(prompt="p", response="r"))


def test_ngram_drafts_what_followed_the_first_occurrence() -> None:
    seven = np.arange(7, dtype=np.int32)
    context = np.concatenate((seven, [90, 91, 92], seven, [80, 81], seven)).astype(np.int32)
    assert find_ngram(context, 2) == [90, 91]
    assert find_ngram(context[:7], 2) == []
    assert find_ngram(np.zeros(0, np.int32), 2) == []


def test_ngram_is_vllms() -> None:
    find = pytest.importorskip(
        "vllm.v1.spec_decode.ngram_proposer", reason="vLLM is not installed"
    )._find_longest_matched_ngram_and_propose_tokens
    rng = np.random.default_rng(0)
    found = 0
    for length in (0, 1, NGRAM_LENGTH, NGRAM_LENGTH + 1, 13, 53, 211):
        for _ in range(20):
            context = rng.integers(0, 2, length).astype(np.int32)
            theirs = find(context, NGRAM_LENGTH, NGRAM_LENGTH, 1 << 20, 7).tolist()
            assert find_ngram(context, 7) == theirs
            found += bool(theirs)
    assert found > 40


def test_ngram_drafter_follows_prompt_and_output() -> None:
    drafter = NgramDrafter(draft_length=3)
    prompt = np.arange(10, dtype=np.int32)
    drafter.start(row(prompt, np.zeros(30, np.int32)))
    drafter.observe(np.array([0, 1, 2, 3], np.int32))
    assert list(drafter.propose()) == []
    drafter.observe(np.array([4], np.int32))
    assert list(drafter.propose()) == [5, 6, 7]


def test_sweep_has_eighteen_settings_vllms_default_and_the_long_one_among_them() -> None:
    assert len(set(SUFFIX_SWEEP)) == 18
    assert {SuffixSetting(), SUFFIX_LONG} <= set(SUFFIX_SWEEP)


def test_suffix_drafts_from_cached_answers_and_forgets_those_that_do_not_join() -> None:
    pytest.importorskip("arctic_inference", reason="SuffixDecoding is not installed")
    prompt = np.array([900, 901], np.int32)
    answer = np.arange(40, dtype=np.int32)
    drafter = SuffixDrafter(SuffixSetting())
    assert drafter.bytes_per_cached_token is None
    drafter.add(row(prompt, answer, name="a"), answer)
    drafter.start(row(prompt, answer, name="b"))
    drafter.observe(answer[:6])
    assert list(drafter.propose()) == [6, 7, 8, 9, 10, 11]
    with_b = drafter.bytes_per_cached_token
    drafter.finish(row(prompt, answer, name="b"), joins=False)
    assert with_b is not None
    assert set(drafter._cache.cached_requests) == {"cached-a"}
