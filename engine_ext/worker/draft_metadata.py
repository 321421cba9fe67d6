# mypy: allow-untyped-calls, allow-untyped-decorators
"""Describes a batch's drafts to whoever verifies them, in one piece.

vLLM makes five arrays of it and copies each to the GPU on its own, then gathers the drafts there in
two more steps, while the GPU has nothing else to do. Here they are parts of one array: one copy and
one gathering.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

from reprise.engine_ext.compat.guarded import Original

Ints = npt.NDArray[np.int32]

_ALIGNED = 4
"""Parts begin at multiples of 16 bytes, as kernels expect of arrays."""


def compile_now() -> None:
    """Compile what describes drafts, or read it from the disk, before a request waits for it."""
    describe_drafts(np.zeros(1, np.int32), np.ones(1, np.int32), torch.zeros(1, dtype=torch.int32))


def calc_spec_decode_metadata(
    original: Original,  # noqa: ARG001 - replaced, unless this fails
    runner: Any,
    num_draft_tokens: Ints,  # [batch]
    cu_num_scheduled_tokens: Ints,  # [batch]
) -> SpecDecodeMetadata:
    """Describe a batch's drafts: the hook of `Feature.DRAFT_METADATA`."""
    return describe_drafts(num_draft_tokens, cu_num_scheduled_tokens, runner.input_ids.gpu)


def describe_drafts(
    num_draft_tokens: Ints,  # [batch]
    cu_num_scheduled_tokens: Ints,  # [batch]: of input_ids, drafts last
    input_ids: torch.Tensor,  # [tokens] int32, on the model's device
) -> SpecDecodeMetadata:
    """Describe as vLLM does a batch in which request i has num_draft_tokens[i] drafted tokens."""
    numbers = num_draft_tokens.tolist()
    batch, drafted = len(numbers), sum(numbers)
    lengths = (batch, batch, batch, batch + drafted, drafted, drafted)
    begins, size = [], 0
    for length in lengths:
        begins.append(size)
        size += -(-length // _ALIGNED) * _ALIGNED
    on_gpu = input_ids.device.type != "cpu"
    # Pinned memory is not given to anyone else before the copy is done.
    whole = torch.empty(size, dtype=torch.int32, pin_memory=on_gpu)
    _fill(num_draft_tokens, cu_num_scheduled_tokens, whole.numpy(), *begins[1:])
    if on_gpu:
        whole = whole.to(input_ids.device, non_blocking=True)
    drafts, sampled, bonus, logits, targets, drafted_at = (
        whole[begin : begin + length] for begin, length in zip(begins, lengths, strict=True)
    )
    return SpecDecodeMetadata(
        draft_token_ids=input_ids[drafted_at],
        num_draft_tokens=numbers,
        cu_num_draft_tokens=drafts,
        cu_num_sampled_tokens=sampled,
        target_logits_indices=targets,
        bonus_logits_indices=bonus,
        logits_indices=logits,
    )


@numba.njit(cache=True)
def _fill(
    num_draft_tokens: Ints,  # [batch]
    cu_num_scheduled_tokens: Ints,  # [batch]
    out: Ints,
    sampled: int,
    bonus: int,
    logits: int,
    targets: int,
    drafted: int,
) -> None:
    """Fill the parts of `out`, the first of which begins at 0 and the others at the offsets given.

    A request has a row of logits for each drafted token, and after them one for its bonus.
    """
    draft, row = 0, 0
    for request in range(num_draft_tokens.shape[0]):
        number = num_draft_tokens[request]
        place = cu_num_scheduled_tokens[request] - number - 1  # in input_ids
        for i in range(number):
            out[logits + row] = place + i
            out[targets + draft] = row
            out[drafted + draft] = place + i + 1
            row += 1
            draft += 1
        out[logits + row] = place + number
        row += 1
        out[request] = draft
        out[sampled + request] = row
        out[bonus + request] = row - 1
