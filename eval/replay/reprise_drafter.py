"""Reprise in a replay: DraftProvider, fed by a retriever in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reprise.engine_ext.answer_page.records import SeenAnswer
from reprise.eval.replay.near_lookup import NearLookup
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalStats
from reprise.retrieval.search.embedding import Embedder
from reprise.spec.api.config import DraftConfig
from reprise.spec.api.recorded_steps import DraftedToken
from reprise.spec.provider import DraftProvider


class RepriseDrafter:
    """DraftProvider and LocalRetriever, made synchronous: every request has its near answers in
    time. Both are the ones that serve; only the verification cost is given instead of measured."""

    def __init__(
        self,
        *,
        embedder: Embedder,
        cost: float,
        draft_length: int | None = None,
        clauses: bool = True,
        retrieval: RetrievalConfig | None = None,
    ) -> None:
        settings: dict[str, float | int] = {"verify_cost": cost}
        if draft_length is not None:
            settings["num_speculative_tokens"] = draft_length
        self._draft_length = draft_length or DraftConfig().num_speculative_tokens
        self._provider = DraftProvider(DraftConfig.model_validate(settings))
        self._lookup = NearLookup(embedder=embedder, clauses=clauses, config=retrieval)
        self._request_id = ""
        self._near_answers: list[NearAnswer] = []

    def prepare(self, rows: Sequence[TokenRow]) -> None:
        self._lookup.prepare(rows)
        self._provider.warm_up()

    def add(self, row: TokenRow, answer_token_ids: IntArray) -> None:
        self._lookup.add(row, answer_token_ids)

    def look_up(self, row: TokenRow) -> None:
        updates, self._near_answers = self._lookup.look_up(row)
        for update in updates:
            self._take(update)

    def _take(self, update: AnswerUpdate) -> None:
        """An answer joined or left."""
        if update.added:
            self._provider.add_answer(update.answer_id, update.response_token_ids)
        else:
            self._provider.remove_answer(update.answer_id)

    def start(self, row: TokenRow) -> None:
        self._request_id = row.request_id
        self._provider.start(row.request_id, row.prompt_token_ids)
        self._provider.attach(row.request_id, self._near_answers)

    def propose(self) -> Sequence[int]:
        return self._provider.propose(self._request_id, limit=self._draft_length)

    def origins_of(self, draft: Sequence[int]) -> Sequence[DraftedToken]:
        return self._provider.drafted_tokens(self._request_id)[: len(draft)]

    @property
    def near(self) -> Mapping[str, SeenAnswer]:
        return self._lookup.seen(self._near_answers)

    def observe(self, token_ids: IntArray) -> None:
        self._provider.observe(self._request_id, token_ids)  # type: ignore[arg-type]

    def finish(self, row: TokenRow, *, joins: bool) -> None:
        stats = self._provider.finish(row.request_id)
        if stats is not None and stats.accepted_by_answer:
            self._lookup.record_usage(stats.accepted_by_answer)
        if joins:
            self.add(row, row.response_token_ids)

    def retrieval_stats(self) -> RetrievalStats:
        """Return the retriever's counts."""
        return self._lookup.stats()

    def close(self) -> None:
        """Stop the retriever."""
        self._lookup.close()

    @property
    def by_source(self) -> Mapping[str, Mapping[str, int]]:
        return {
            source: {"drafted": counts.drafted, "accepted": counts.accepted}
            for source, counts in self._provider.stats().by_source.items()
        }

    @property
    def bytes_per_cached_token(self) -> float | None:
        stats = self._provider.stats()
        return stats.bytes / stats.cached_tokens if stats.cached_tokens else None
