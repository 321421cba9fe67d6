"""Where a replay in virtual time has near answers from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from reprise.eval.replay.near_lookup import NearLookup
from reprise.eval.replay.token_rows import TokenRow
from reprise.retrieval.api.answer import AnswerUpdate
from reprise.retrieval.search.embedding import Embedder
from reprise.retrieval.search.token_overlap import TokenOverlap
from reprise.spec.api.near_answer import NearAnswer

_OVERLAP_ANSWERS = 8


class NearSource(Protocol):
    """Answers that were given, and which of them are near to a prompt."""

    def add(self, row: TokenRow) -> None:
        """Take in a row's answer."""

    def find(self, row: TokenRow) -> Sequence[NearAnswer]:
        """Return the answers near to a row's prompt, the nearest first."""


class NoNear:
    """For an engine without drafts."""

    def add(self, row: TokenRow) -> None:
        pass

    def find(self, row: TokenRow) -> Sequence[NearAnswer]:  # noqa: ARG002
        return ()


class OverlapNear:
    """By shared tokens, as drafting does until retrieval has answered: quick, and coarse."""

    def __init__(self) -> None:
        self._overlap = TokenOverlap()

    def add(self, row: TokenRow) -> None:
        self._overlap.apply(
            AnswerUpdate(
                answer_id=row.request_id,
                namespace="",
                added=True,
                prompt_tokens=row.prompt_token_ids.astype("<i4").tobytes(),
                response_tokens=row.response_token_ids.astype("<i4").tobytes(),
            )
        )

    def find(self, row: TokenRow) -> Sequence[NearAnswer]:
        return self._overlap.search("", row.prompt_token_ids, count=_OVERLAP_ANSWERS)


class RetrievedNear:
    """By meaning: the retriever that serves, waited for. Close it in the end."""

    def __init__(self, embedder: Embedder) -> None:
        self._lookup = NearLookup(embedder=embedder)

    def add(self, row: TokenRow) -> None:
        self._lookup.add(row, row.response_token_ids)

    def find(self, row: TokenRow) -> Sequence[NearAnswer]:
        _, near_answers = self._lookup.look_up(row)
        return near_answers

    def close(self) -> None:
        """Stop the retriever."""
        self._lookup.close()
