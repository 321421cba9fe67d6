"""The drafters to compare with, none, n-gram and SuffixDecoding, as vLLM runs them."""

from __future__ import annotations

import importlib.util
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from reprise.engine_ext.answer_page.records import SeenAnswer
from reprise.eval.replay.drafter import unknown_origins
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.spec.api.recorded_steps import DraftedToken

NGRAM_LENGTH = 5
"""Both `prompt_lookup_min` and `prompt_lookup_max`, as vLLM sets them if neither is given."""
NGRAM_DRAFT_LENGTH = 5
"""What vLLM's documentation sets; longer ones only cost more, as the frontier shows."""

_MAX_CACHED_REQUESTS = 10_000


class NoDrafter:
    """Never drafts; the base of drafters that keep no cache."""

    def prepare(self, rows: Sequence[TokenRow]) -> None:
        """Nothing to prepare."""

    def add(self, row: TokenRow, answer_token_ids: IntArray) -> None:
        """Nothing is cached."""

    def look_up(self, row: TokenRow) -> None:
        """Nothing is looked up."""

    def start(self, row: TokenRow) -> None:
        """Nothing to start."""

    def propose(self) -> Sequence[int]:
        """No draft."""
        return ()

    def observe(self, token_ids: IntArray) -> None:
        """Nothing is learned."""

    def finish(self, row: TokenRow, *, joins: bool) -> None:
        """Nothing to end."""

    def origins_of(self, draft: Sequence[int]) -> Sequence[DraftedToken]:
        """Unknown."""
        return unknown_origins(draft)

    @property
    def near(self) -> Mapping[str, SeenAnswer]:
        """No near answers."""
        return {}

    @property
    def by_source(self) -> Mapping[str, Mapping[str, int]]:
        """No sources."""
        return {}

    @property
    def bytes_per_cached_token(self) -> float | None:
        """No index."""
        return None


class NgramDrafter(NoDrafter):
    """vLLM's n-gram proposer: what followed the latest n-gram of prompt and output earlier on."""

    def __init__(self, *, draft_length: int) -> None:
        self._draft_length = draft_length
        self._find = _ngram_function()
        self._context = np.zeros(0, np.int32)
        self._length = 0
        self._drafted = 0

    def start(self, row: TokenRow) -> None:
        prompt = row.prompt_token_ids
        self._context = np.zeros(len(prompt) + 2 * len(row.response_token_ids) + 64, np.int32)
        self._context[: len(prompt)] = prompt
        self._length = len(prompt)

    def observe(self, token_ids: IntArray) -> None:
        self._context[self._length : self._length + len(token_ids)] = token_ids
        self._length += len(token_ids)

    def propose(self) -> Sequence[int]:
        return self._find(self._context[: self._length], self._draft_length)

    def origins_of(self, draft: Sequence[int]) -> Sequence[DraftedToken]:
        return unknown_origins(draft, "context")


class SuffixSetting(NamedTuple):
    """The knobs of SuffixDecoding, under vLLM's names without their prefix."""

    max_spec_factor: float = 1.0
    min_token_prob: float = 0.1
    max_tree_depth: int = 24


SUFFIX_LONG = SuffixSetting(max_spec_factor=4.0, max_tree_depth=64)
SUFFIX_SWEEP = tuple(
    SuffixSetting(factor, prob, depth)
    for factor in (1.0, 2.0, 4.0)
    for prob in (0.05, 0.1, 0.3)
    for depth in (24, 64)
)


class SuffixDrafter(NoDrafter):
    """SuffixDecoding, driven as vLLM's proposer drives it; answers enter its tree as they grow."""

    def __init__(self, setting: SuffixSetting, *, draft_length: int | None = None) -> None:
        """`draft_length`: most tokens in a draft; None is the depth of the tree, as in vLLM."""
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._setting = setting
        self._draft_length = draft_length or setting.max_tree_depth
        self._cache: Any = SuffixDecodingCache(
            max_tree_depth=setting.max_tree_depth, max_cached_requests=_MAX_CACHED_REQUESTS
        )
        self._request_id = ""
        self._tail = np.zeros(0, np.int32)
        self._cached_tokens: dict[str, int] = defaultdict(int)

    def add(self, row: TokenRow, answer_token_ids: IntArray) -> None:
        request_id = f"cached-{row.request_id}"
        self._cache.start_request(request_id, row.prompt_token_ids)
        self._cache.add_active_response(request_id, answer_token_ids)
        self._cache.stop_request(request_id)
        self._cached_tokens[request_id] = len(answer_token_ids)

    def start(self, row: TokenRow) -> None:
        self._request_id = row.request_id
        self._cache.start_request(row.request_id, row.prompt_token_ids)
        self._tail = row.prompt_token_ids[-self._setting.max_tree_depth :]

    def observe(self, token_ids: IntArray) -> None:
        self._cache.add_active_response(self._request_id, token_ids)
        self._cached_tokens[self._request_id] += len(token_ids)
        self._tail = np.concatenate((self._tail, token_ids))[-self._setting.max_tree_depth :]

    def propose(self) -> Sequence[int]:
        draft: list[int] = self._cache.speculate(
            self._request_id,
            self._tail,
            max_spec_tokens=self._draft_length,
            max_spec_factor=self._setting.max_spec_factor,
            min_token_prob=self._setting.min_token_prob,
        ).token_ids
        return draft

    def finish(self, row: TokenRow, *, joins: bool) -> None:
        self._cache.stop_request(row.request_id)
        if not joins:
            self._cache.evict_cached_response(row.request_id)
            del self._cached_tokens[row.request_id]

    @property
    def bytes_per_cached_token(self) -> float | None:
        tokens = sum(self._cached_tokens.values())
        return self._cache._global_tree.estimate_memory() / tokens if tokens else None


def _ngram_function() -> Callable[[IntArray, int], list[int]]:
    """vLLM's own function where it is installed, else the same search written out below."""
    try:
        from vllm.v1.spec_decode.ngram_proposer import (
            _find_longest_matched_ngram_and_propose_tokens as find,
        )
    except ImportError:
        return find_ngram

    def find_with_vllm(context: IntArray, draft_length: int) -> list[int]:
        found: list[int] = find(context, NGRAM_LENGTH, NGRAM_LENGTH, 1 << 30, draft_length).tolist()
        return found

    find_with_vllm(np.arange(8, dtype=np.int32), 1)  # compiles, so that no request waits for it
    return find_with_vllm


def find_ngram(context: IntArray, draft_length: int) -> list[int]:
    """What followed the first earlier occurrence of the context's last NGRAM_LENGTH tokens."""
    if len(context) <= NGRAM_LENGTH:
        return []
    windows = np.lib.stride_tricks.sliding_window_view(context[:-1], NGRAM_LENGTH)
    places = np.flatnonzero((windows == context[-NGRAM_LENGTH:]).all(axis=1))
    if not len(places):
        return []
    start = int(places[0]) + NGRAM_LENGTH
    found: list[int] = context[start : start + draft_length].tolist()
    return found


def suffix_installed() -> bool:
    """Whether SuffixDecoding can be run here."""
    return importlib.util.find_spec("arctic_inference") is not None


def all_but_missing(names: Iterable[str]) -> list[str]:
    """Return all methods of a comparison that can be run here; what is left out is said on standard
    error."""
    every = list(names)
    kept = [name for name in every if not name.startswith("suffix") or suffix_installed()]
    if len(kept) < len(every):
        print("SuffixDecoding is left out: pip install -e '.[peers]'", file=sys.stderr)
    return kept
