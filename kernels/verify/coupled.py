"""Coupled verification of one-hot drafts: the sample of vLLM's V2 sampler, with drafts as without.

`verify_drafts` has noise of its own; this has the noise that vLLM's V2 sampler takes for a seed and
a position, and the layout of its rejection sampler.
"""

from __future__ import annotations

import torch

from reprise.kernels.verify import Backend, check_logits
from reprise.kernels.verify.constants import INT_DTYPES


def verify_coupled(
    logits: torch.Tensor,  # [rows, vocab] bf16, fp16 or fp32, any row stride
    row_token_ids: torch.Tensor,  # [rows] int: what the model was fed; negative: never accepted
    positions: torch.Tensor,  # [rows] int: of that token in its sequence
    row_slots: torch.Tensor,  # [rows] int: where the settings of the row's request lie
    cu_num_logits: torch.Tensor,  # [batch + 1] int: where a request's rows begin and end
    *,
    temperature: torch.Tensor | None,  # [num_slots] float; None: every request is greedy
    top_k: torch.Tensor | None,  # [num_slots] int; < 1 or >= vocab: off
    top_p: torch.Tensor | None,  # [num_slots] float in (0, 1]; 1: off
    min_p: torch.Tensor | None,  # [num_slots] float in [0, 1]; 0: off
    seeds: torch.Tensor | None,  # [num_slots] int64; may be None if temperature is
    max_draft: int,
    is_scaled: bool = False,
    backend: Backend = "auto",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verify drafts, so that they change no sample, and add one more token.

    A request owns consecutive rows: the first is fed the last token that is known, each further one
    a draft, which is the draft for the row before it. Row by row, with `x = logits / temperature`:

        token = argmax(x + gumbel(seed, position, token id) over the tokens that are kept)
        emit token; go on with the next row only if that was fed this token

    The argmax is a sample of the softmax over the kept tokens, and it is the one that vLLM's V2
    sampler draws for this seed and position. So a draft is accepted exactly if it is what would
    have been sampled in its place: with its probability, as in rejection sampling (Leviathan et
    al., 2023), and what comes out is, token for token, what comes out without drafts.

    Kept are, in this order, the tokens with x >= max x + log(min_p); the first `top_k` of these,
    the lower id first among equals; of these, renormalised, each token with less than `top_p` of
    mass strictly above it. These are vLLM's (its kernels at times split a tie at the edge of top_p,
    by rounding; here ties stay together).

    A greedy row takes the argmax of the logits, ties to the lowest id; so does a row without a
    finite maximum. A NaN counts as +inf.

    Args:
        max_draft: the largest number of drafts that any request may have.
        is_scaled: the logits have been divided by the temperature, which then only says who is
            greedy, and what is not kept is -inf.
        backend: `auto` takes Triton for CUDA tensors and torch for all others.

    Returns:
        Token ids [batch, max_draft + 1] int64 (accepted drafts, then one more token, then -1), and
        how many they are [batch] int32.

    Raises:
        ValueError: shapes, dtypes or devices of what is given for rows and requests do not fit.
            Settings, and values, are not looked at.

    Example:
        >>> logits = torch.tensor([[0.0, 9.0, 1.0], [7.0, 0.0, 2.0]])
        >>> fed, positions = torch.tensor([2, 1]), torch.tensor([5, 6])
        >>> slots, rows = torch.tensor([0, 0]), torch.tensor([0, 2])
        >>> greedy = dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "seeds"))
        >>> tokens, num = verify_coupled(
        ...     logits, fed, positions, slots, rows, max_draft=1, **greedy
        ... )
        >>> tokens.tolist(), num.tolist()
        ([[1, 0]], [2])
    """
    _check(logits, row_token_ids, positions, row_slots, cu_num_logits)
    if temperature is not None and seeds is None:
        raise ValueError("expected seeds wherever temperature is given, came None")
    if is_scaled and not (top_k is None and top_p is None and min_p is None):
        raise ValueError("expected neither top_k, top_p nor min_p beside is_scaled, came one")
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"expected backend 'auto', 'torch' or 'triton', came {backend!r}")
    if temperature is None:
        top_k = top_p = min_p = seeds = None
    if backend == "triton" or (backend == "auto" and logits.is_cuda):
        from reprise.kernels.verify.triton_coupled import verify_coupled_triton as run
    else:
        from reprise.kernels.verify.coupled_reference import verify_coupled_torch as run
    return run(
        logits,
        row_token_ids,
        positions,
        row_slots,
        cu_num_logits,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seeds=seeds,
        max_draft=max_draft,
        is_scaled=is_scaled,
    )


def _check(
    logits: torch.Tensor,
    row_token_ids: torch.Tensor,
    positions: torch.Tensor,
    row_slots: torch.Tensor,
    cu_num_logits: torch.Tensor,
) -> None:
    check_logits(logits, rows="rows")
    rows, ends = logits.shape[0], cu_num_logits.numel()
    if ends < 2:
        raise ValueError("expected at least one request, came none")
    for name, tensor, length in (
        ("row_token_ids", row_token_ids, rows),
        ("positions", positions, rows),
        ("row_slots", row_slots, rows),
        ("cu_num_logits", cu_num_logits, ends),
    ):
        fits = tensor.shape == (length,) and tensor.dtype in INT_DTYPES
        if not fits or tensor.device != logits.device:
            raise ValueError(
                f"expected {name} [{length}] of int32 or int64 on {logits.device}, "
                f"came {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            )
