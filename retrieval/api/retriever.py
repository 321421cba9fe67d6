"""The interface that engines use: hand in prompts and answers, pick up near answers, never wait."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from numpy.typing import ArrayLike

from reprise.retrieval.api.answer import Answer, AnswerUpdate
from reprise.retrieval.api.batch_search import search_all
from reprise.retrieval.api.found_clause import FoundClause
from reprise.retrieval.api.invalidation import Forgetting, Invalidation
from reprise.retrieval.api.near_answer import NearAnswer


@dataclass(frozen=True, slots=True)
class RetrievalStats:
    """Counts since the start, but for `answers`, `namespaces`, `bytes` and `waiting`, of now."""

    submitted: int = 0
    abandoned: int = 0
    """Requests that were over before the search for them began."""
    found: int = 0
    """Requests that got at least one near answer."""
    stored: int = 0
    """Answers that joined, those of other replicas included."""
    evicted: int = 0
    evicted_early: int = 0
    """Answers that left memory before they were indexed and written, which they never will be."""
    duplicates: int = 0
    """Answers that left memory because another one says nearly the same."""
    wrong_tokenizer: int = 0
    """Answers refused because another tokenizer made them."""
    dropped: int = 0
    """Prompts and answers dropped because a queue was full."""
    unwritten: int = 0
    """Answers that the tier behind memory never got."""
    uncredited: int = 0
    """Answers whose uses it never got."""
    embedded: int = 0
    """Answers that had to be embedded when they joined."""
    restored: int = 0
    """Answers whose vectors came from the index's snapshot."""
    refused_snapshots: int = 0
    """Snapshots of the index that were damaged or made otherwise."""
    resyncs: int = 0
    """Times that updates were not picked up before their queue was full, and were sent again."""
    unreadable: int = 0
    """Records and stream entries of the tier that were skipped: damaged, or a newer version's."""
    errors: int = 0
    restarts: int = 0
    """Times that the retrieval process was started again."""
    hangs: int = 0
    """Of these, times that it had not answered and was killed."""
    answers: int = 0
    namespaces: int = 0
    bytes: int = 0
    waiting: int = 0
    """Answers found by comparing one by one until they have moved into the graph."""
    compound: int = 0
    """Questions that were found to have clauses."""
    remote_searches: int = 0
    """Look-ups in the remote index."""
    remote_found: int = 0
    """Of these, those that found what memory did not hold."""
    remote_late: int = 0
    """Of these, those that took longer than `search_budget_ms`."""
    remote_failed: int = 0
    """Of these, those that came to nothing: an error, or the circuit breaker was open."""
    remote_unwritten: int = 0
    """Changes that the remote index never got."""
    remote_orphans: int = 0
    """Answers found there that the tier did not hold any more."""
    clause_s: float = 0.0
    """Finding them; beside embedding, in another thread."""
    embed_s: float = 0.0
    search_s: float = 0.0


@dataclass(frozen=True, slots=True)
class RetrievalHealth:
    """What works now."""

    state: Literal["starting", "ready", "degraded", "closed"]
    """degraded: near answers come, but without the embedding model or a tier that was asked for."""
    embedder: str = ""
    detail: str = ""
    tier: str = ""
    """The tier behind memory: sqlite, redis or none."""
    breakers: dict[str, Literal["closed", "open", "half-open"]] = field(default_factory=dict)
    """Of that tier's circuit breakers: read, write."""
    ready_after_s: float | None = None
    """From the start until near answers could be found; None: not yet."""


class Retriever(ABC):
    """From prompts to near answers. Thread-safe; only `search`, `flush`, `forget` and `close`
    ever wait.

    Nothing here raises after construction: what goes wrong is counted in `stats` and logged, and
    costs hits.

    Example:
        >>> from reprise.retrieval import Answer, RetrievalConfig
        >>> from reprise.retrieval.in_process.local_retriever import LocalRetriever
        >>> retriever = LocalRetriever(RetrievalConfig(embedding_model="lexical"))
        >>> stored = Answer.create(
        ...     prompt_token_ids=[1], response_token_ids=[7, 8], prompt_text="cancel my order"
        ... )
        >>> retriever.store(stored)
        >>> retriever.flush(timeout_s=60)
        True
        >>> retriever.submit("request", namespace="", text="please cancel my order")
        >>> retriever.flush(timeout_s=60)
        True
        >>> [near_answer.response_token_ids.tolist() for near_answer in retriever.poll("request")]
        [[7, 8]]
        >>> [len(found) for found in retriever.search(["cancel an order", "where is it"])]
        [1, 0]
        >>> retriever.record_usage("", {stored.answer_id: 2})  # two of its tokens were accepted
        >>> retriever.close()
    """

    max_concurrent_searches = 64
    """Texts of one call of `search` that are searched for at any time."""

    @abstractmethod
    def submit(
        self,
        request_id: str,
        *,
        namespace: str,
        text: str | None = None,
        prompt_token_ids: ArrayLike | None = None,  # [p] integers
    ) -> None:
        """Begin the search for near answers.

        `text` is the query itself, embedded as it is; without it the query is cut out of the
        decoded `prompt_token_ids`. Submitting a live id again replaces it.
        """

    @abstractmethod
    def poll(self, request_id: str) -> list[NearAnswer] | None:
        """Return the near answers, best first; None while they are not there (or for an unknown
        id)."""

    @abstractmethod
    def progress(self) -> int:
        """Return a number that is another one whenever `poll` has more to give than before: who
        waits for many requests asks for each only then."""

    def found_s(self, request_id: str) -> float | None:  # noqa: ARG002 - few know
        """Return when a request's near answers were there, in seconds of `time.monotonic`; None:
        they are not, or it is not known."""
        return None

    @abstractmethod
    def clauses(self, request_id: str) -> list[FoundClause]:
        """Return the clauses that a request's question was found to have, in their order; none
        while `poll` gives None, and none for a question that asks one thing."""

    def search(
        self, texts: Sequence[str], *, namespace: str = "", timeout_s: float = 60.0
    ) -> list[list[NearAnswer]]:
        """Return the near answers to each text, and wait for them.

        For programs that look things up by themselves, not for engines: `submit` never waits.
        A text whose search has not ended after `timeout_s` seconds has none.
        """
        return search_all(
            self,
            texts,
            namespace=namespace,
            max_concurrent=self.max_concurrent_searches,
            timeout_s=timeout_s,
        )

    @abstractmethod
    def discard(self, request_id: str) -> None:
        """Forget a request; its near answers may still be in use by who polled them."""

    @abstractmethod
    def store(self, answer: Answer) -> None:
        """Let an answer join: searches find it soon after.

        One with a fingerprint is for exact hits: it is written to the tier, and no search finds it.
        """

    @abstractmethod
    def record_usage(self, namespace: str, accepted_tokens: Mapping[str, int]) -> None:
        """Record how many tokens drafted from each answer id were accepted: that keeps it."""

    @abstractmethod
    def forget(self, invalidation: Invalidation, *, timeout_s: float) -> Forgetting:
        """Forget answers here, in the tier and on all replicas; waits for the tier up to
        `timeout_s`. What cannot be done now is done as soon as it can be."""

    @abstractmethod
    def updates(self) -> list[AnswerUpdate]:
        """Return answers that joined or left, here or on other replicas, since the last call."""

    @abstractmethod
    def flush(self, timeout_s: float) -> bool:
        """Wait until all that was submitted and stored so far is done; False if it took longer."""

    @abstractmethod
    def stats(self) -> RetrievalStats:
        """Return counts so far."""

    @abstractmethod
    def health(self) -> RetrievalHealth:
        """Return what works now."""

    @abstractmethod
    def close(self) -> None:
        """Stop; answers on their way to a tier are written first. Idempotent."""
