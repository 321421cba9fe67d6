"""Draft look-up in near answers on the device: checks the arguments and hands over to a backend."""

from __future__ import annotations

from typing import Literal

import torch

MAX_MATCH = 16
"""Longest suffix of the context that is looked for."""


def lookup_drafts(
    tail_token_ids: torch.Tensor,  # [batch, tail] int32, right-aligned, -1 where there is no token
    answer_token_ids: torch.Tensor,  # [num_answer_tokens] int32: all near answers end to end
    answer_offsets: torch.Tensor,  # [num_answers + 1] int64: where each near answer begins
    request_offsets: torch.Tensor,  # [batch + 1] int32: request i has answers [i]..[i + 1] - 1
    num_wanted: torch.Tensor,  # [batch] int32: drafts wanted, 0 for none
    *,
    max_draft: int,
    min_match: int = 1,
    backend: Literal["auto", "torch", "triton"] = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Continue each context as the near answer does in which its longest suffix occurs.

    A position `j` of a near answer `a` (1 <= j < len(a)) matches as far as the tokens before it
    equal the last tokens of the context:

        match(a, j) = max m <= MAX_MATCH such that a[j - m:j] == tail[-m:]

    Taken is the position of the longest match; among equals the nearest answer's (a request's
    answers come most similar first); within it the last, being the most recent. If that match has
    at least `min_match` tokens, the draft is what follows: a[j:j + num_wanted].

    Nothing is random, and the host does not wait for the device.

    Args:
        max_draft: width of the output; no request gets more drafts.
        min_match: shortest match that is drafted from, 1 to `MAX_MATCH`.
        backend: `auto` takes Triton for CUDA tensors and torch for all others.

    Returns:
        Drafts [batch, max_draft] int32, padded with -1, and the length of the match that they
        follow [batch] int32, 0 if there are none.

    Raises:
        ValueError: shapes, dtypes or devices do not fit. Values are not looked at.

    Example:
        >>> tail, answer = torch.tensor([[-1, 7, 8]]).int(), torch.tensor([7, 8, 1, 8, 2]).int()
        >>> drafts, match = lookup_drafts(tail, answer, torch.tensor([0, 5]),
        ...     torch.tensor([0, 1]).int(), torch.tensor([2]).int(), max_draft=3)
        >>> drafts.tolist(), match.tolist()
        ([[1, 8, -1]], [2])
    """
    batch = tail_token_ids.shape[0] if tail_token_ids.ndim == 2 else 0
    expected = {
        "tail_token_ids": (tail_token_ids, torch.int32, (batch, None)),
        "answer_token_ids": (answer_token_ids, torch.int32, (None,)),
        "answer_offsets": (answer_offsets, torch.int64, (None,)),
        "request_offsets": (request_offsets, torch.int32, (batch + 1,)),
        "num_wanted": (num_wanted, torch.int32, (batch,)),
    }
    for name, (tensor, dtype, shape) in expected.items():
        fits = len(shape) == tensor.ndim and all(
            want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
        )
        if not fits or tensor.dtype != dtype or tensor.device != tail_token_ids.device:
            raise ValueError(
                f"expected {name} {['any' if n is None else n for n in shape]} of {dtype} on "
                f"{tail_token_ids.device}, came {list(tensor.shape)} of {tensor.dtype} on "
                f"{tensor.device}"
            )
    if batch == 0 or max_draft < 1 or not 1 <= min_match <= MAX_MATCH:
        raise ValueError(
            f"expected at least one request, max_draft >= 1 and min_match in 1..{MAX_MATCH}, "
            f"came {batch} requests, max_draft {max_draft} and min_match {min_match}"
        )
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"expected backend 'auto', 'torch' or 'triton', came {backend!r}")

    if backend == "triton" or (backend == "auto" and tail_token_ids.is_cuda):
        from reprise.kernels.lookup_triton import lookup_drafts_triton as run
    else:
        from reprise.kernels.lookup_torch import lookup_drafts_torch as run
    return run(
        tail_token_ids,
        answer_token_ids,
        answer_offsets,
        request_offsets,
        num_wanted,
        max_draft=max_draft,
        min_match=min_match,
    )
