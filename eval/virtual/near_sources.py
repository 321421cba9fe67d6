"""Where a replay in virtual time has near answers from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reprise.eval.replay.near_lookup import NearLookup, answer_id_of
from reprise.eval.replay.token_rows import TokenRow
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.near_answer import NearAnswer

_MOST = 32


class NearSource(Protocol):
    """Answers that were given, and which of them are near to a prompt."""

    def add(self, row: TokenRow) -> None:
        """Take in a row's answer."""

    def by_tokens(self, row: TokenRow) -> Sequence[NearAnswer]:
        """Return the answers whose prompts share tokens with a row's, the most alike first."""

    def by_meaning(self, row: TokenRow) -> Sequence[NearAnswer]:
        """Return the answers near in meaning to a row's prompt, the nearest first."""


class NoNear:
    """For an engine without drafts."""

    def add(self, row: TokenRow) -> None:
        pass

    def by_tokens(self, row: TokenRow) -> Sequence[NearAnswer]:  # noqa: ARG002
        return ()

    def by_meaning(self, row: TokenRow) -> Sequence[NearAnswer]:  # noqa: ARG002
        return ()


class OverlapNear:
    """For an engine without an embedding model."""

    def __init__(self) -> None:
        self._overlap = TokenOverlap()

    def add(self, row: TokenRow) -> None:
        self._overlap.apply(
            AnswerUpdate(
                answer_id=answer_id_of(row, row.response_token_ids),
                namespace="",
                added=True,
                prompt_tokens=row.prompt_token_ids.astype("<i4").tobytes(),
                response_tokens=row.response_token_ids.astype("<i4").tobytes(),
            )
        )

    def by_tokens(self, row: TokenRow) -> Sequence[NearAnswer]:
        return self._overlap.search("", row.prompt_token_ids, count=_MOST)

    def by_meaning(self, row: TokenRow) -> Sequence[NearAnswer]:  # noqa: ARG002
        return ()


class RetrievedNear(OverlapNear):
    """With the retriever that serves, waited for. Close it in the end."""

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self._lookup = NearLookup(embedder=embedder)

    def add(self, row: TokenRow) -> None:
        super().add(row)
        self._lookup.add(row, row.response_token_ids)

    def by_meaning(self, row: TokenRow) -> Sequence[NearAnswer]:
        _, near_answers = self._lookup.look_up(row)
        return near_answers

    def close(self) -> None:
        """Stop the retriever."""
        self._lookup.close()
