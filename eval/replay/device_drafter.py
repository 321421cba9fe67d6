# mypy: allow-untyped-calls
"""The drafting of `kernels/draft` in a replay: a batch of one request, its tensors on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from reprise.engine_ext.answer_page.records import SeenAnswer
from reprise.engine_ext.speculator.host_corpus import HostCorpus
from reprise.eval.replay.drafter import unknown_origins
from reprise.eval.replay.near_lookup import NearLookup
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.kernels.draft import Backend, draft_tokens
from reprise.kernels.draft.arena import CorpusArena
from reprise.kernels.draft.constants import CORPUS_ROW, NEAR_LENGTH
from reprise.kernels.draft.near_row import near_row
from reprise.kernels.draft.state import DraftState
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.search.embedding import Embedder
from reprise.spec.api.recorded_steps import DraftedToken
from reprise.spec.batching.request import select_near
from reprise.spec.lengths.best_lengths import best_lengths, easy_token_gain
from reprise.spec.lengths.draft_length import MIN_PROB

SOURCES = ("context", "near_answer", "corpus", "recent")
_NAMESPACE = ""


class SortedCorpus(HostCorpus):
    """A corpus in which recent answers are sorted in once there is no room for them."""

    def add(self, answer_id: str, tokens: IntArray) -> bool:
        """Add an answer; return whether all have been sorted, as there were too many recent
        ones."""
        self.append(answer_id, tokens)
        if self.num_recent_tokens <= self.room:
            return False
        self.sort()
        return True


class ArenaCorpus:
    """The corpus of a replay, sorted, and the tensors of a device that it is written to."""

    def __init__(self, state: DraftState, *, arena_tokens: int) -> None:
        self.sorted = SortedCorpus()
        self._state = state
        self._arena = CorpusArena(num_corpora=1, arena_tokens=arena_tokens)

    @property
    def row(self) -> int:
        """Its row among the device's corpora; -1: it has none before the first answer."""
        return self._arena.row(_NAMESPACE) if _NAMESPACE in self._arena else -1

    def add(self, answer_id: str, tokens: IntArray) -> None:
        """Put an answer into it.

        Raises:
            ValueError: the arena has no room for all answers.
        """
        was_sorted = self.sorted.add(answer_id, tokens)
        if self.row >= 0 and not was_sorted:
            writes = self._arena.append(_NAMESPACE, tokens)
        else:
            corpus = self.sorted
            writes = self._arena.put(
                _NAMESPACE,
                corpus.text,
                corpus.order,
                recent_begin=corpus.recent_begin,
                room=corpus.room,
            )
        if writes is None:
            raise ValueError("expected a cache that the arena has room for, came a larger one")
        for begin, values in writes.parts:
            self._state.arena[begin : begin + len(values)] = torch.from_numpy(values)
        self._state.corpora[writes.row] = torch.from_numpy(writes.fields)


class DeviceDrafter:
    """Drafts as a device makes them, cut to the lengths that the product's rule takes for their
    chances. Near answers come in time, and answers join as they do in the product."""

    def __init__(
        self,
        *,
        embedder: Embedder,
        cost: float,
        draft_length: int = 16,
        max_model_len: int = 16_384,
        arena_tokens: int = 1 << 22,
        near_answers: int = 32,
        backend: Backend = "auto",
        learns: bool = True,
    ) -> None:
        """`learns`: whether chances follow what copies came to, or stay the start values."""
        self._lookup = NearLookup(embedder=embedder)
        self._cost, self._backend, self._most_near = cost, backend, near_answers
        self._state = DraftState.create(
            num_slots=1,
            max_draft=draft_length,
            max_near_tokens=1 << 16,
            num_corpora=1,
            arena_tokens=arena_tokens,
        )
        self._learned = (self._state.hit_counts, self._state.hit_chances, self._state.hit_worths)
        self._start_values = None if learns else [table.clone() for table in self._learned]
        self._corpus = ArenaCorpus(self._state, arena_tokens=arena_tokens)
        self._near_answers: list[NearAnswer] = []
        self._generation = 0
        self._all_token_ids = torch.zeros((1, max_model_len), dtype=torch.int32)
        self._total_len = torch.zeros(1, dtype=torch.int32)
        self._idx_mapping = torch.zeros(1, dtype=torch.int32)
        self._one = torch.ones(1, dtype=torch.int32)
        self._drafts = torch.zeros((1, draft_length), dtype=torch.int64)
        self._chances = torch.zeros((1, draft_length), dtype=torch.float32)

    def prepare(self, rows: Sequence[TokenRow]) -> None:
        self._lookup.prepare(rows)

    def add(self, row: TokenRow, answer_token_ids: IntArray) -> None:
        self._lookup.add(row, answer_token_ids)

    def look_up(self, row: TokenRow) -> None:
        updates, self._near_answers = self._lookup.look_up(row)
        for update in updates:
            if not update.added:
                raise ValueError(f"expected a cache that keeps all, {update.answer_id} has left it")
            self._corpus.add(update.answer_id, update.response_token_ids)

    def start(self, row: TokenRow) -> None:
        self._generation += 1
        self._total_len.zero_()
        self.observe(row.prompt_token_ids)
        near = near_row(
            [near.response_token_ids for near in select_near(self._near_answers, self._most_near)],
            max_near_tokens=self._state.near_token_ids.shape[1],
        )
        self._state.near_token_ids[0, : len(near)] = torch.from_numpy(near)
        fields = [self._generation, len(row.prompt_token_ids), 0, 0]
        fields[NEAR_LENGTH] = len(near)
        fields[CORPUS_ROW] = self._corpus.row
        self._state.slots[0] = torch.tensor(fields, dtype=torch.int32)

    def propose(self) -> Sequence[int]:
        draft_tokens(
            self._state,
            all_token_ids=self._all_token_ids,
            total_len=self._total_len,
            idx_mapping=self._idx_mapping,
            num_sampled=self._one,
            drafts=self._drafts,
            chances=self._chances,
            backend=self._backend,
        )
        if self._start_values is not None:
            for table, values in zip(self._learned, self._start_values, strict=True):
                table.copy_(values)
        length = draft_length(self._chances[0].numpy(), self._cost)
        return self._drafts[0, :length].tolist()

    def origins_of(self, draft: Sequence[int]) -> Sequence[DraftedToken]:
        return unknown_origins(draft)

    @property
    def near(self) -> Mapping[str, SeenAnswer]:
        return self._lookup.seen(self._near_answers)

    def observe(self, token_ids: IntArray) -> None:
        begin = int(self._total_len[0])
        self._all_token_ids[0, begin : begin + len(token_ids)] = torch.from_numpy(token_ids)
        self._total_len += len(token_ids)

    def finish(self, row: TokenRow, *, joins: bool) -> None:
        if joins:
            self._lookup.add(row, row.response_token_ids)

    def close(self) -> None:
        """Stop the retriever."""
        self._lookup.close()

    @property
    def by_source(self) -> Mapping[str, Mapping[str, int]]:
        totals = self._state.totals.tolist()
        return {
            source: {"drafted": tried, "accepted": right}
            for source, (tried, right) in zip(SOURCES, totals, strict=True)
        }

    @property
    def bytes_per_cached_token(self) -> float | None:
        text, order = self._corpus.sorted.text, self._corpus.sorted.order
        tokens = int(np.count_nonzero(text >= 0))
        return 4 * (len(text) + len(order)) / tokens if tokens else None


def draft_length(chances: np.ndarray, cost: float) -> int:
    """How long a draft is worth its cost, by the product's rule, from chances [K] of each token
    given those before it."""
    probs = np.cumprod(chances.astype(np.float64))
    length = int(np.count_nonzero(probs >= max(MIN_PROB, easy_token_gain(cost))))
    if length == 0:
        return 0
    # What would follow the last one is as likely as those before it on average.
    behind = probs[length] if length < len(probs) else probs[-1] ** (1.0 + 1.0 / length)
    curve = 1.0 + cost * np.arange(length + 1)
    kept, _ = best_lengths(np.append(probs[:length], behind)[None], np.array([length]), curve, cost)
    return int(kept[0])
