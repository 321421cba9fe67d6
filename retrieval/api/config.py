"""The one configuration of retrieval."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from reprise.retrieval.api.search_url import EMBEDDED, parse_search
from reprise.retrieval.api.tier_url import check_url


def _checked(url: str) -> str:
    check_url(url)
    return url


def _checked_search(search: str) -> str:
    parse_search(search)
    return search


class RetrievalConfig(BaseModel):
    """Settings of retrieval; every field is bounded and unknown keys are refused."""

    # A URL may hold a password: neither an error nor a log line shows it.
    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    url: Annotated[str, AfterValidator(_checked), Field(repr=False)] = "memory://"
    """Where answers outlive this process: memory:// (nowhere), sqlite:///path, redis://..."""

    embedding_model: str = "all-MiniLM-L6-v2"
    """A sentence-transformers name or folder; `lexical` for hashed words, without a model."""

    near_answers: Annotated[int, Field(ge=1, le=32)] = 32
    """Maximum of near answers handed over for one request; no more than 32 can be drafted from."""

    search: Annotated[str, AfterValidator(_checked_search), Field(repr=False)] = EMBEDDED
    """Where what memory does not hold is searched: faiss (nowhere), milvus://host:port or, for one
    machine, milvus:///path.db; needs a tier."""

    search_budget_ms: Annotated[float, Field(gt=0, le=1000)] = 15.0
    """How long near answers wait for such a search; what comes later is found the next time."""

    min_similarity: Annotated[float, Field(ge=-1.0, le=1.0)] = 0.2
    """Cosine from which an answer counts as near; a wrong one only costs a little speed."""

    duplicate_similarity: Annotated[float, Field(ge=0.9)] = 0.98
    """Cosine of prompts from which nearly the same answer is held in memory once, with a tier
    behind it; above 1, all are held."""

    memory_bytes: Annotated[int, Field(ge=1 << 13)] = 256 << 20
    """Bound on the answers held in memory, with what their indexes and their namespaces take."""

    max_namespaces: Annotated[int, Field(ge=1)] = 20_000
    """Maximum of namespaces held, in memory and behind it; beyond, the least valuable leaves
    whole."""

    tier_bytes: Annotated[int, Field(ge=1 << 20)] = 1 << 30
    """Bound on what the SQLite file or our keys in Redis take; the least valuable answers leave."""

    ttl_s: Annotated[float, Field(gt=0)] | None = None
    """Age in seconds at which an answer is dropped; None keeps it until it is evicted."""

    batch_size: Annotated[int, Field(ge=1, le=1024)] = 32
    """Maximum of prompts embedded together."""

    max_concurrent_searches: Annotated[int, Field(ge=1, le=4096)] = 64
    """Maximum of texts that one call of `Retriever.search` has searched for at any time."""

    queue_length: Annotated[int, Field(ge=1)] = 4096
    """Maximum of prompts, and of answers, waiting; what comes beyond is dropped, counted."""

    queue_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 20
    """Maximum of bytes waiting in each queue, between threads or processes, whatever their
    number."""

    exact_search_limit: Annotated[int, Field(ge=256)] = 20_000
    """Answers of one namespace searched one by one; beyond, they move into an HNSW graph."""

    index_snapshot: str | None = None
    """File in which the vector index outlives restarts; None: beside the SQLite file, if any."""

    poll_s: Annotated[float, Field(gt=0, le=10.0)] = 0.2
    """How often to look for what other replicas stored."""

    stream_length: Annotated[int, Field(ge=100)] = 50_000
    """About how many changes, of all namespaces, Redis keeps for replicas to read."""

    clauses: bool = True
    """Search for the parts of a compound question too."""

    clause_pipeline: str | None = None
    """A trained spaCy pipeline to find clauses with; None uses the rules for English, Chinese."""

    embedding_threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Torch threads of the retrieval process."""

    shared_bytes: Annotated[int, Field(ge=1 << 20, le=1 << 34)] = 64 << 20
    """Shared memory for near answers between the retrieval process and its clients."""

    @property
    def has_tier(self) -> bool:
        """Whether answers outlive this process."""
        return not self.url.startswith("memory:")

    @model_validator(mode="after")
    def _has_a_tier_to_search(self) -> Self:
        """Refuse a search for answers that no tier keeps."""
        if self.search != EMBEDDED and not self.has_tier:
            raise ValueError(
                "search in Milvus finds what a tier keeps: set url to sqlite:// or redis:// too"
            )
        return self
