# mypy: allow-untyped-calls
"""The drafting of `kernels/draft` for a batch, in a provider's place: what a GPU drafts by default.

Its definition in torch, on tensors as a device has them. Answers join its corpus, and near answers
come to requests that run, when the closed loop says so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reprise.eval.replay.device_drafter import ArenaCorpus
from reprise.eval.replay.token_rows import IntArray
from reprise.kernels.draft import draft_tokens
from reprise.kernels.draft.constants import (
    ANSWER_BEGIN,
    CORPUS_ROW,
    GENERATION,
    NEAR_LENGTH,
)
from reprise.kernels.draft.near_row import near_row
from reprise.kernels.draft.state import DraftState
from reprise.spec.api.near_answer import NearAnswer
from reprise.spec.batching.request import select_near

_NUM_SLOTS = 256
_MAX_MODEL_LEN = 4096
_MAX_NEAR_TOKENS = 8192
_ARENA_TOKENS = 1 << 21
_MAX_NEAR = 32


class CopyBatch:
    """Requests in slots, as on model runner V2.

    Args:
        draft_length: most tokens of a draft.
    """

    def __init__(self, draft_length: int) -> None:
        self._state = DraftState.create(
            num_slots=_NUM_SLOTS,
            max_draft=draft_length,
            max_near_tokens=_MAX_NEAR_TOKENS,
            num_corpora=1,
            arena_tokens=_ARENA_TOKENS,
        )
        self._draft_length = draft_length
        self._corpus = ArenaCorpus(self._state, arena_tokens=_ARENA_TOKENS)
        self._known: set[str] = set()
        self._texts = torch.zeros((_NUM_SLOTS, _MAX_MODEL_LEN), dtype=torch.int32)
        self._lengths = torch.zeros(_NUM_SLOTS, dtype=torch.int32)
        self._free = list(range(_NUM_SLOTS))
        self._slots: dict[str, int] = {}
        self._chances: dict[str, npt.NDArray[np.float32]] = {}
        self._generation = 0

    def add_answer(self, answer_id: str, response_token_ids: IntArray) -> None:
        """Put an answer into the corpus."""
        if answer_id in self._known:
            return
        self._known.add(answer_id)
        self._corpus.add(answer_id, response_token_ids)
        for slot in self._slots.values():
            self._state.slots[slot, CORPUS_ROW] = self._corpus.row

    def start(self, request_id: str, prompt_token_ids: IntArray) -> None:
        """Begin a request."""
        slot = self._slots[request_id] = self._free.pop()
        self._generation += 1
        fields = torch.zeros_like(self._state.slots[slot])
        fields[GENERATION], fields[ANSWER_BEGIN] = self._generation, len(prompt_token_ids)
        fields[CORPUS_ROW] = self._corpus.row
        self._state.slots[slot] = fields
        self._lengths[slot] = 0
        self.observe(request_id, prompt_token_ids.tolist())

    def attach(self, request_id: str, near_answers: Sequence[NearAnswer]) -> None:
        """Give a request its near answers."""
        slot = self._slots[request_id]
        row = near_row(
            [near.response_token_ids for near in select_near(near_answers, _MAX_NEAR)],
            max_near_tokens=_MAX_NEAR_TOKENS,
        )
        self._state.near_token_ids[slot, : len(row)] = torch.from_numpy(row)
        self._state.slots[slot, NEAR_LENGTH] = len(row)

    def skip_drafting(self, num_requests: int, **_: Any) -> bool:  # noqa: ARG002
        """How long drafts are is decided elsewhere."""
        return False

    def observe(self, request_id: str, token_ids: Sequence[int]) -> None:
        """Take in what was emitted."""
        slot = self._slots[request_id]
        begin = int(self._lengths[slot])
        new = torch.tensor(token_ids, dtype=torch.int32)[: _MAX_MODEL_LEN - begin]
        self._texts[slot, begin : begin + len(new)] = new
        self._lengths[slot] = begin + len(new)

    def step(
        self,
        request_ids: Sequence[str],
        emitted: Sequence[Sequence[int]],
        *,
        limits: Callable[[], Sequence[int]],
        **_: Any,
    ) -> list[list[int]]:
        """Take in what was emitted, and draft."""
        for request_id, tokens in zip(request_ids, emitted, strict=True):
            self.observe(request_id, tokens)
        wanted = list(limits())
        if not any(wanted):
            return [[] for _ in request_ids]
        drafts = torch.zeros((len(wanted), self._draft_length), dtype=torch.int64)
        chances = torch.zeros((len(wanted), self._draft_length))
        draft_tokens(
            self._state,
            all_token_ids=self._texts,
            total_len=self._lengths,
            idx_mapping=torch.tensor([self._slots[i] for i in request_ids], dtype=torch.int32),
            num_sampled=torch.tensor([int(limit > 0) for limit in wanted], dtype=torch.int32),
            drafts=drafts,
            chances=chances,
        )
        found = []
        for row, (request_id, limit) in enumerate(zip(request_ids, wanted, strict=True)):
            # Behind its end a copy is filled up with tokens that are never meant.
            length = min(limit, int(torch.count_nonzero(chances[row])))
            found.append(drafts[row, :length].tolist())
            self._chances[request_id] = np.cumprod(chances[row, :length].numpy())
        return found

    def draft_chances(self, request_id: str) -> npt.NDArray[np.float32]:
        """The probability that a request's latest draft is right up to and with each token."""
        return self._chances[request_id]

    def finish(self, request_id: str) -> None:
        """End a request."""
        self._free.append(self._slots.pop(request_id))
        self._chances.pop(request_id, None)
