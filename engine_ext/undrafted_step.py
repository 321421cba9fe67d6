"""A step without drafts is prepared, on the CPU, as if there were no speculation.

vLLM 0.32 describes the drafts of every batch for its rejection sampler, and does as much for a
batch that has none.
"""

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import lru_cache, wraps
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

_PARAMETERS = ("self", "num_draft_tokens", "cu_num_scheduled_tokens")
_FIELDS = (
    "draft_token_ids",
    "num_draft_tokens",
    "cu_num_draft_tokens",
    "cu_num_sampled_tokens",
    "target_logits_indices",
    "bonus_logits_indices",
    "logits_indices",
)


def install() -> None:
    """In the worker: wrap what describes a batch's drafts; once.

    Raises:
        RuntimeError: vLLM is not as expected; it is left as it is.
    """
    original: Callable[..., SpecDecodeMetadata] = GPUModelRunner._calc_spec_decode_metadata
    if hasattr(original, "_reprise_undrafted"):
        return
    parameters = tuple(inspect.signature(original).parameters)
    known = tuple(field.name for field in fields(SpecDecodeMetadata))
    if parameters != _PARAMETERS or known != _FIELDS:
        raise RuntimeError(
            f"expected GPUModelRunner._calc_spec_decode_metadata{_PARAMETERS} and "
            f"SpecDecodeMetadata{_FIELDS}; came {parameters} and {known}"
        )

    @wraps(original)
    def calc_spec_decode_metadata(
        self: Any,
        num_draft_tokens: npt.NDArray[np.int32],  # [batch]
        cu_num_scheduled_tokens: npt.NDArray[np.int32],  # [batch]
    ) -> SpecDecodeMetadata:
        if self.device.type != "cpu" or num_draft_tokens.any():
            return original(self, num_draft_tokens, cu_num_scheduled_tokens)
        return without_drafts(cu_num_scheduled_tokens)

    calc_spec_decode_metadata._reprise_undrafted = True  # type: ignore[attr-defined]
    GPUModelRunner._calc_spec_decode_metadata = calc_spec_decode_metadata


def without_drafts(
    cu_num_scheduled_tokens: npt.NDArray[np.int32],  # [batch]
) -> SpecDecodeMetadata:
    """What describes a batch in which no request has a draft: a row of logits for each."""
    nothing, no_drafts, ends, rows = _of_batch(len(cu_num_scheduled_tokens))
    return SpecDecodeMetadata(
        draft_token_ids=nothing,
        num_draft_tokens=[0] * len(rows),
        cu_num_draft_tokens=no_drafts,
        cu_num_sampled_tokens=ends,
        target_logits_indices=nothing,
        bonus_logits_indices=rows,
        logits_indices=torch.from_numpy(cu_num_scheduled_tokens - 1),
    )


@lru_cache(maxsize=1024)
def _of_batch(batch: int) -> tuple[torch.Tensor, ...]:
    """What is the same for all batches of this size; nobody writes to it."""
    rows = torch.arange(batch, dtype=torch.int32)
    return torch.zeros(0, dtype=torch.int32), torch.zeros_like(rows), rows + 1, rows
