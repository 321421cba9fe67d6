"""The settings of drafting."""

from pydantic import BaseModel, ConfigDict, Field


class DraftSettings(BaseModel):
    """How drafts are made, for an engine that says itself how long they may be."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    verify_cost: float | None = Field(default=None, ge=0.0, le=10.0)
    """Cost of verifying one drafted token, relative to a step without drafts.

    None: measured while serving; a number: fixed, as a replay needs it. Model runner V1 only: on V2
    costs are always measured."""

    max_near_answers: int = Field(default=32, ge=0, le=32)
    """Max near answers that a request drafts from; the most similar are kept."""

    max_corpus_bytes: int = Field(default=1 << 30, ge=0)
    """Max bytes for the corpora of all namespaces together; beyond it the oldest answers of the
    largest namespaces are dropped. Model runner V1 only: on V2 the corpora have 16 MiB of the
    device's memory."""

    weights_file: str | None = None
    """File in which what drafting has learned outlives restarts; None: beside the SQLite file, if
    any."""

    num_threads: int = Field(default=8, ge=1, le=64)
    """Max threads that draft for a large batch; never more than the cores of the process."""


class DraftConfig(DraftSettings):
    """All that a `DraftProvider` needs to know; frozen, unknown keys are refused."""

    num_speculative_tokens: int = Field(default=16, ge=0, le=64)
    """Max tokens in one draft; 0 turns drafting off."""
