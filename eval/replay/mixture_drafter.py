# mypy: allow-untyped-calls
"""The core of the predictor, as a device is to have it, in a replay: by the definition in Python.

Its weights are learned as the product does beside a device: when a request has ended, the host's
predictor goes through it once more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from reprise.engine_ext.speculator.mixture_learner import (
    EndedRequest,
    learning_provider,
    replay_request,
)
from reprise.eval.replay.device_drafter import SortedCorpus, draft_length
from reprise.eval.replay.drafter import unknown_origins
from reprise.eval.replay.reprise_drafter import RepriseDrafter
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.kernels.draft.constants import BOS
from reprise.kernels.mixture.evidence import Alignment, SortedAnswers, Text, advance
from reprise.kernels.mixture.layout import LEAST_CHANCE, MAX_NEAR
from reprise.kernels.mixture.near import FIRST_HIT, lay_out_near
from reprise.kernels.mixture.reference import Presence, Weights, draft, near_pieces
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.search.embedding import Embedder
from reprise.spec.api.recorded_steps import DraftedToken
from reprise.spec.batching.request import select_near


class MixtureDrafter(RepriseDrafter):
    """Drafts by the core, with weights that are learned from requests before, or those shipped."""

    def __init__(
        self, *, embedder: Embedder, cost: float, draft_length: int = 16, learns: bool = True
    ) -> None:
        super().__init__(embedder=embedder, cost=cost, draft_length=draft_length)
        self._provider = learning_provider()
        self._cost, self._most, self._learns = cost, draft_length, learns
        self._corpus = SortedCorpus()
        self._copy_weights()

    def _copy_weights(self) -> None:
        tables = self._provider.weights()
        self._weights = Weights(tables.mixture.tolist(), tables.choice.tolist())

    def _take(self, update: AnswerUpdate) -> None:
        super()._take(update)
        if not update.added:
            raise ValueError(f"expected a cache that keeps all, {update.answer_id} has left it")
        self._corpus.add(update.answer_id, update.response_token_ids)

    def start(self, row: TokenRow) -> None:
        near = select_near(self._near_answers, MAX_NEAR)
        self._prompt = Counter(row.prompt_token_ids.tolist())
        self._output: Counter[int] = Counter()
        self._tokens = [*row.prompt_token_ids.tolist(), BOS]
        self._begin = len(row.prompt_token_ids)
        responses = [answer.response_token_ids.tolist() for answer in near]
        self._near = lay_out_near(
            responses,
            [answer.prompt_token_ids.tolist() for answer in near],
            [answer.similarity for answer in near],
            [answer.clause for answer in near],
            own_prompt=row.prompt_token_ids.tolist(),
        )
        self._in_near = Counter(token for response in responses for token in set(response))
        starts = self._near.starts
        self._alignment = Alignment([start + 1 for start in starts], [FIRST_HIT] * len(starts))
        text, order = self._corpus.text.tolist(), self._corpus.order.tolist()
        self._sorted = SortedAnswers(text, order, self._corpus.recent_begin)
        self._drafted: list[int] = []
        self._alignments: list[Alignment] = []

    def propose(self) -> Sequence[int]:
        text = Text(self._tokens, self._begin, len(self._tokens))
        drafted = draft(
            text,
            self._near,
            self._alignment,
            self._sorted,
            Presence(self._prompt, self._output, self._in_near),
            self._weights,
            max_draft=self._most,
            least_chance=LEAST_CHANCE,
        )
        self._drafted, self._alignments = drafted.token_ids, drafted.alignments
        return self._drafted[: draft_length(np.array(drafted.chances), self._cost)]

    def origins_of(self, draft: Sequence[int]) -> Sequence[DraftedToken]:
        return unknown_origins(draft)

    def observe(self, token_ids: IntArray) -> None:
        for token in token_ids.tolist():
            if self._drafted and self._drafted[0] == token:
                self._alignment = self._alignments[0]
                del self._drafted[0], self._alignments[0]
            else:
                text = Text(self._tokens, self._begin, len(self._tokens))
                found = near_pieces(text, self._near, self._alignment)
                self._alignment = advance(self._alignment, found, self._near, token)
                self._drafted = []
            self._tokens.append(token)
            self._output[token] += 1

    def finish(self, row: TokenRow, *, joins: bool) -> None:
        if self._learns:
            near = select_near(self._near_answers, MAX_NEAR)
            ended = EndedRequest("", row.prompt_token_ids, row.response_token_ids, near, 0)
            replay_request(self._provider, ended)
            self._copy_weights()
        if joins:
            self.add(row, row.response_token_ids)
