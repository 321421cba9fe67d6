"""Settings of verification."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict


class VerifyConfig(BaseModel):
    """How drafts are verified inside the engine."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    enabled: bool | None = None
    """Verify with Reprise's kernels where a batch qualifies. None: on model runner V2, on CUDA, and
    on the CPU where all requests are greedy; True: everywhere; False: never, and sampled requests
    with a seed get no drafts."""

    backend: Literal["auto", "torch", "triton"] = "auto"
    """Implementation: `auto` takes Triton for CUDA tensors, numba or torch for all others; `torch`
    and `triton` force one."""
