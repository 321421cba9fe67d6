# mypy: allow-untyped-defs, allow-untyped-calls
# (numba infers the types of the compiled function; shapes are in the comments)
"""Verification on the CPU where every request is greedy: numpy's argmax and a compiled walk.

On one core numpy finds the largest of a row's logits several times as fast as torch does; all in
all this takes a third to a half of vLLM's time (`eval/benchmarks/bench_verify_cpu.py`).
"""

from __future__ import annotations

import numba
import numpy as np
import torch

from reprise.kernels.verify.constants import PADDING_TOKEN_ID


def verify_drafts_greedy(
    logits: torch.Tensor,  # [num_draft + batch, vocab] on the CPU
    draft_token_ids: torch.Tensor,  # [num_draft]
    cu_num_draft_tokens: torch.Tensor,  # [batch]
    *,
    max_draft: int,
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """See `verify_drafts`, all temperatures 0; None where a NaN is among the logits.

    numpy takes the first NaN, and the definition the first NaN or +inf.
    """
    rows = logits.float().numpy()
    sampled = rows.argmax(axis=1)
    if np.isnan(rows[np.arange(len(rows)), sampled]).any():
        return None
    batch = cu_num_draft_tokens.shape[0]
    tokens = np.full((batch, max_draft + 1), PADDING_TOKEN_ID, np.int32)
    accepted = np.zeros(batch, np.int32)
    _walk(
        sampled,
        draft_token_ids.numpy(),
        cu_num_draft_tokens.numpy(),
        tokens,
        accepted,
    )
    return torch.from_numpy(tokens), torch.from_numpy(accepted)


@numba.njit(cache=True, nogil=True)
def _walk(
    sampled,  # [num_draft + batch] int64
    drafts,  # [num_draft] int32 or int64
    ends,  # [batch] int32 or int64, inclusive running sum
    tokens,  # [batch, max_draft + 1] int32, filled with padding
    accepted,  # [batch] int32
):
    row = draft = 0
    for request in range(len(ends)):
        first = draft
        tokens[request, 0] = sampled[row]
        while draft < ends[request] and drafts[draft] == sampled[row]:
            draft += 1
            row += 1
            tokens[request, draft - first] = sampled[row]
        accepted[request] = draft - first
        row += ends[request] - draft + 1
        draft = ends[request]
