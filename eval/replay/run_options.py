"""What `acceptance_rate.py` is asked to measure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Options as they were given; None where one was left out."""

    engine: Literal["replay", "vllm"] = "replay"
    traces: Sequence[str] = ()
    """Paths; none: the demo trace."""
    methods: str | None = None
    """Names, separated by commas."""
    cost: float = 0.02
    """Of verifying a drafted token, in steps of its request."""
    threshold: float = 0.8
    """Cosine from which on the semantic cache answers."""
    num_speculative_tokens: int | None = None
    limit: int | None = None
    """Requests of each trace, warm ones not counted."""
    seed: int = 0
    tokenizer: str | None = None
    model: str | None = None
    dtype: str | None = None
    concurrency: int = 8
    max_tokens: int | None = None
    """Of an answer of a real engine."""
    take_turns: bool = False
    output: Path | None = None
    csv: Path | None = None
    html: Path | None = None
    plot: Path | None = None
    quiet: bool = False
