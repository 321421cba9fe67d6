"""Drafting on the device: checks the arguments and hands over to a backend."""

from __future__ import annotations

from typing import Literal

import torch

from reprise.kernels.draft.constants import ALL_TOKENS
from reprise.kernels.draft.state import DraftState

Backend = Literal["auto", "torch", "triton"]


def draft_tokens(
    state: DraftState,
    *,
    all_token_ids: torch.Tensor,  # [num_slots, max_model_len] int32, any row stride
    total_len: torch.Tensor,  # [num_slots] int32
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64: the slot of each row of the batch
    num_sampled: torch.Tensor,  # [num_reqs] int32: in this step; 0: nothing is drafted
    drafts: torch.Tensor,  # [num_reqs, K] int64: out
    chances: torch.Tensor,  # [num_reqs, K] float32: out
    vocab_size: int = ALL_TOKENS,
    backend: Backend = "auto",
) -> None:
    """Draft K tokens for each row of the batch, and learn from what became of its last draft.

    For a row with `num_sampled`, whose slot's context is `all_token_ids[slot, :total_len[slot]]`:

        for each source: the longest match of the context's last tokens, up to MAX_MATCH
        beside these, the longest match that the token follows which most matches vote for
        of each, the tokens that follow it, to the end of the answer it is in: a copy
        the copy that is worth most: by how many of the first tokens of such copies were right,
        with matches of that length, and where as many others begin with the same token

    A match does not reach back beyond the beginning of an answer, neither of the request's own nor
    of the one it is found in; where both begin there, that counts as one more token. Of equally
    long matches the context's last is taken, the recent answers' last, in the sorted corpus the
    last of those with the commonest next token, and in the near answers, of the first VOTING_PLACES
    matches, the one that goes furthest beyond a difference, else the first. A copy from the
    request's own answer goes on into itself.

    The first VOTING_PLACES matches in the near answers vote, and as many last ones in the context,
    with each symbol of the match and of what matches beyond one that is replaced, missing or too
    many; a vote of the nearest answers and of the latest context weighs more.

    `chances[row, k]` is how often tokens in that place of such a copy have been right if those
    before them were. Where there is nothing to draft, and in all rows without `num_sampled`, tokens
    are the row's last one, with chance 0; they are never negative, so that a model can embed them.

    Learning compares all copies, kept since the slot's last draft, with the tokens that
    the context has got since; it needs nothing from the host. A row without `num_sampled` leaves
    alone what is kept. The host never waits, nothing is allocated, and launches depend on shapes
    only.

    Args:
        vocab_size: tokens that the model can look up. A prompt may have others, which stand for
            images: a copy ends before them.
        backend: `auto` takes Triton for CUDA tensors, torch for all others.

    Raises:
        ValueError: shapes, dtypes or devices do not fit. Values are not looked at; slots must be in
            [-1, num_slots), and -1 stands for a row without a request.
    """
    check(state, all_token_ids, total_len, idx_mapping, num_sampled, drafts, chances, backend)
    if drafts.numel() == 0:
        return
    if backend == "triton" or (backend == "auto" and drafts.is_cuda):
        from reprise.kernels.draft.triton_kernels import draft_tokens_triton as run
    else:
        from reprise.kernels.draft.reference import draft_tokens_torch as run
    run(
        state,
        all_token_ids=all_token_ids,
        total_len=total_len,
        idx_mapping=idx_mapping,
        num_sampled=num_sampled,
        drafts=drafts,
        chances=chances,
        vocab_size=vocab_size,
    )


def check(
    state: DraftState,
    all_token_ids: torch.Tensor,
    total_len: torch.Tensor,
    idx_mapping: torch.Tensor,
    num_sampled: torch.Tensor,
    drafts: torch.Tensor,
    chances: torch.Tensor,
    backend: str,
) -> None:
    """Refuse arguments that do not fit; see `draft_tokens`."""
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"expected backend 'auto', 'torch' or 'triton', came {backend!r}")
    rows, width = idx_mapping.shape[0], drafts.shape[-1]
    max_model_len = all_token_ids.shape[-1]
    idx_type = torch.int64 if idx_mapping.dtype == torch.int64 else torch.int32
    expected: dict[str, tuple[torch.Tensor, tuple[int, ...], torch.dtype]] = {
        "all_token_ids": (all_token_ids, (state.num_slots, max_model_len), torch.int32),
        "total_len": (total_len, (state.num_slots,), torch.int32),
        "idx_mapping": (idx_mapping, (rows,), idx_type),
        "num_sampled": (num_sampled, (rows,), torch.int32),
        "drafts": (drafts, (rows, width), torch.int64),
        "chances": (chances, (rows, width), torch.float32),
    }
    for name, (tensor, shape, dtype) in expected.items():
        fits = tensor.shape == shape and tensor.dtype == dtype
        if not fits or tensor.device != state.slots.device or tensor.stride(-1) != 1:
            raise ValueError(
                f"expected {name} {list(shape)} of {dtype} on {state.slots.device}, contiguous "
                f"within a row, came {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            )
    if width > state.max_draft:
        raise ValueError(f"expected drafts of up to {state.max_draft} tokens, came {width}")
