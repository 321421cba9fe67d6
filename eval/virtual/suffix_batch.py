"""SuffixDecoding for a batch, in a provider's place: a drafter that does not change with ours.

What it was measured to gain on a GPU says how right the costs of steps are, apart from our drafts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reprise.eval.replay.peer_drafters import SuffixSetting
from reprise.eval.replay.token_rows import IntArray
from reprise.spec.api.near_answer import NearAnswer

_MAX_CACHED_REQUESTS = 10_000
_SETTING = SuffixSetting()


class SuffixBatch:
    """As vLLM's proposer drives it, with its defaults; answers enter its tree as they grow."""

    def __init__(self) -> None:
        from arctic_inference.suffix_decoding import SuffixDecodingCache

        self._cache: Any = SuffixDecodingCache(
            max_tree_depth=_SETTING.max_tree_depth, max_cached_requests=_MAX_CACHED_REQUESTS
        )
        self._tails: dict[str, IntArray] = {}
        self._known: set[str] = set()

    def add_answer(self, answer_id: str, response_token_ids: IntArray) -> None:
        """Put an answer into the tree that was given before."""
        if answer_id not in self._known:
            self._known.add(answer_id)
            self._cache.start_request(answer_id, response_token_ids[:1])
            self._cache.add_active_response(answer_id, response_token_ids)
            self._cache.stop_request(answer_id)

    def start(self, request_id: str, prompt_token_ids: IntArray) -> None:
        """Begin a request."""
        self._known.add(request_id)
        self._cache.start_request(request_id, prompt_token_ids)
        self._tails[request_id] = prompt_token_ids[-_SETTING.max_tree_depth :]

    def attach(self, request_id: str, near_answers: Sequence[NearAnswer]) -> None:
        """It knows of no near answers."""

    def skip_drafting(self, num_requests: int, **_: Any) -> bool:  # noqa: ARG002
        """It looks for drafts after every step."""
        return False

    def observe(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Take in what was emitted."""
        self._cache.add_active_response(request_id, np.asarray(token_ids, np.int32))

    def step(
        self,
        request_ids: Sequence[str],
        emitted: Sequence[Sequence[int]],
        *,
        limits: Callable[[], Sequence[int]],
        **_: Any,
    ) -> list[list[int]]:
        """Take in what was emitted, and draft."""
        drafts = []
        for request_id, tokens, limit in zip(request_ids, emitted, limits(), strict=True):
            new = np.asarray(tokens, np.int32)
            self._cache.add_active_response(request_id, new)
            tail = np.concatenate((self._tails[request_id], new))[-_SETTING.max_tree_depth :]
            self._tails[request_id] = tail
            drafts.append(self._speculate(request_id, tail) if limit else [])
        return drafts

    def _speculate(self, request_id: str, tail: IntArray) -> list[int]:
        found: list[int] = self._cache.speculate(
            request_id,
            tail,
            max_spec_tokens=_SETTING.max_tree_depth,
            max_spec_factor=_SETTING.max_spec_factor,
            min_token_prob=_SETTING.min_token_prob,
        ).token_ids
        return found

    def draft_chances(self, request_id: str) -> npt.NDArray[np.float32]:  # noqa: ARG002
        """It is not asked for them."""
        return np.zeros(0, np.float32)

    def finish(self, request_id: str) -> None:
        """End a request."""
        self._cache.stop_request(request_id)
        del self._tails[request_id]
