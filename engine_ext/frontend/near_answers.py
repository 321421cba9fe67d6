"""Begins retrieval when a request arrives; nothing waits for it."""

import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reprise.engine_ext.core.error_counter import ErrorCounter
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.near_answer import require_namespace

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreRequest

    from reprise.engine_ext.outputs.flight import FinishedFlight
    from reprise.retrieval.api.found_clause import FoundClause
    from reprise.retrieval.api.retriever import RetrievalHealth, Retriever


class NearAnswers:
    """Uses one retriever together with the workers, which poll for what is searched for here.

    What was found can be read for a while after its request is over, and the next one may have the
    same id: so each search has an id of its own, and what is of another namespace is refused.
    """

    def __init__(
        self,
        retriever: "Retriever",
        *,
        model_key: str,
        tokenizer_key: str,
        errors: ErrorCounter,
    ) -> None:
        self._retriever = retriever
        self._errors = errors
        self._model_key = model_key
        self._tokenizer_key = tokenizer_key
        self.kinds: Counter[str] = Counter()
        """Requests by what was there at their first token: semantic, clause, miss."""

    def begin(self, request: "EngineCoreRequest", namespace: str) -> str | None:
        """Begin a search; return its id, or None if the request's prompt has no token ids."""
        if request.prompt_token_ids is None or request.mm_features:
            return None
        search_id = f"{request.request_id}-{secrets.token_hex(8)}"
        self._retriever.submit(
            search_id, namespace=namespace, prompt_token_ids=request.prompt_token_ids
        )
        return search_id

    def nearest(self, search_id: str, namespace: str) -> tuple[str, float | None]:
        """Return what was found so far, `semantic`, `clause` (parts of the prompt) or `miss`, and
        the similarity of the nearest of it."""
        found = self._retriever.poll(search_id)
        if not found:
            return "miss", None
        try:
            require_namespace(found, namespace)
        except ValueError as error:
            self._errors.record("near answers", error)
            return "miss", None
        similarity = round(float(max(answer.similarity for answer in found)), 4)
        is_whole = any(answer.kind == "whole" for answer in found)
        return "semantic" if is_whole else "clause", similarity

    def clauses(self, search_id: str) -> "list[FoundClause]":
        """Return the clauses that the question was found to have."""
        return self._retriever.clauses(search_id)

    @property
    def are_warming(self) -> bool:
        """Whether none can be found yet: the embedding model is being loaded."""
        return self._retriever.health().state == "starting"

    def found_s(self, search_id: str) -> float | None:
        """Return when the search ended, in seconds of `time.monotonic`; None: it has not."""
        return self._retriever.found_s(search_id)

    def store(
        self, prompt_token_ids: Sequence[int], finished: "FinishedFlight", namespace: str
    ) -> None:
        """Store a finished answer, for drafts."""
        if not finished.token_ids:
            return
        self._retriever.store(
            Answer.create(
                prompt_token_ids=prompt_token_ids,
                response_token_ids=finished.token_ids,
                namespace=namespace,
                model_key=self._model_key,
                tokenizer_key=self._tokenizer_key,
                response_text=finished.text,
                finish_reason=str(finished.ending.finish_reason),
                stop_reason=finished.ending.stop_reason,
            )
        )

    def end(self, search_id: str) -> None:
        """Drop what was found for a request that is over."""
        self._retriever.discard(search_id)

    def health(self) -> "RetrievalHealth":
        """Return what works of retrieval."""
        return self._retriever.health()

    def stats(self) -> dict[str, Any]:
        """Return the retriever's figures and state."""
        health = self._retriever.health()
        return {
            **asdict(self._retriever.stats()),
            "state": health.state,
            "detail": health.detail,
            "embedder": health.embedder,
            "ready_after_s": health.ready_after_s,
            "tier": health.tier,
            "breakers": dict(health.breakers),
        }
