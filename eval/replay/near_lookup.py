"""Near answers in a replay: the retriever that serves, made synchronous."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from reprise.engine_ext.answer_page.records import SeenAnswer
from reprise.eval.replay.token_rows import IntArray, TokenRow
from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.api.near_answer import NearAnswer
from reprise.retrieval.api.retriever import RetrievalStats
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.retrieval.search.embedding import Embedder

_FLUSH_S = 600.0


def answer_id_of(row: TokenRow, answer_token_ids: IntArray) -> str:
    """Name an answer to a row."""
    return f"{row.request_id}-{len(answer_token_ids)}"


class NearLookup:
    """A retriever in this process: every request has its near answers in time.

    Args:
        embedder: Of the retriever.
        clauses: Whether it splits compound questions.
        config: Instead of one whose memory holds everything; answers then join one by one, as in a
            server, since what leaves memory before it is indexed reaches no tier.
    """

    def __init__(
        self, *, embedder: Embedder, clauses: bool = True, config: RetrievalConfig | None = None
    ) -> None:
        self._one_by_one = config is not None
        if config is None:
            # A replay hands over its whole cache at once.
            config = RetrievalConfig(queue_length=1 << 20, queue_bytes=4 << 30, clauses=clauses)
        self._retriever = LocalRetriever(config, embedder=embedder)
        self._embedder = embedder
        self._questions: dict[str, str] = {}  # by answer id

    def stats(self) -> RetrievalStats:
        """Return the retriever's counts."""
        return self._retriever.stats()

    def record_usage(self, accepted_tokens: Mapping[str, int]) -> None:
        """Record what was accepted from each answer, by which they are evicted."""
        self._retriever.record_usage("", accepted_tokens)

    def prepare(self, rows: Sequence[TokenRow]) -> None:
        """Embed all prompts in large batches, which the embedder remembers."""
        self._embedder.encode([row.source.query_text for row in rows])

    def add(self, row: TokenRow, answer_token_ids: IntArray) -> None:
        """Let an answer join."""
        answer_id = answer_id_of(row, answer_token_ids)
        self._questions[answer_id] = row.source.query_text
        self._retriever.store(
            Answer.create(
                answer_id=answer_id,
                prompt_token_ids=row.prompt_token_ids,
                response_token_ids=answer_token_ids,
                prompt_text=row.source.query_text,
            )
        )
        if self._one_by_one:
            self._flush()

    def look_up(self, row: TokenRow) -> tuple[list[AnswerUpdate], list[NearAnswer]]:
        """The answers that joined or left since the last call, and the near answers of a row."""
        # The retriever serves prompts before it takes in answers: all that were added join first.
        self._flush()
        self._retriever.submit(row.request_id, namespace="", text=row.source.query_text)
        self._flush()
        updates = list(self._retriever.updates())
        near_answers = self._retriever.poll(row.request_id)
        stats = self._retriever.stats()
        # A search that fails finds nothing, and what drafts come to would be made of less.
        if near_answers is None or stats.errors or stats.dropped:
            raise RuntimeError(f"retrieval failed: {stats}")
        self._retriever.discard(row.request_id)
        return updates, near_answers

    def seen(self, near_answers: Sequence[NearAnswer]) -> dict[str, SeenAnswer]:
        """Near answers as people want to see them, by answer id."""
        return {
            near.answer_id: SeenAnswer(
                self._questions[near.answer_id], float(near.similarity), near.clause
            )
            for near in near_answers
        }

    def _flush(self) -> None:
        if not self._retriever.flush(_FLUSH_S):
            raise RuntimeError(f"retrieval did not finish within {_FLUSH_S} s")

    def close(self) -> None:
        """Stop the retriever."""
        self._retriever.close()
