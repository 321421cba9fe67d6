"""Verification of one-hot drafts: checks the arguments and hands over to a backend."""

from __future__ import annotations

from typing import Literal

import torch

from reprise.kernels.verify.constants import INT_DTYPES, LOGITS_DTYPES

Backend = Literal["auto", "torch", "triton"]


def verify_drafts(
    logits: torch.Tensor,  # [num_draft + batch, vocab] bf16, fp16 or fp32, any row stride
    draft_token_ids: torch.Tensor,  # [num_draft] int32 or int64; negative: never accepted
    cu_num_draft_tokens: torch.Tensor,  # [batch] int32 or int64, inclusive running sum
    *,
    temperature: torch.Tensor | None,  # [batch] float; None: every request is greedy
    top_k: torch.Tensor | None,  # [batch] int; < 1 or >= vocab: off
    top_p: torch.Tensor | None,  # [batch] float in (0, 1]; 1: off
    min_p: torch.Tensor | None,  # [batch] float in [0, 1]; 0: off
    seeds: torch.Tensor | None,  # [batch] int64; may be None if temperature is
    offsets: torch.Tensor | None,  # [batch] int64: counter of the request's first row
    backend: Backend = "auto",
    max_draft: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Verify drafts and add the bonus token, with one read of the logits.

    Request `i` owns `n_i + 1` consecutive rows: one for each of its `n_i` drafts and the bonus row.
    Row `j` of a request is sampled from its processed target distribution, with the uniform that
    Philox gives for `(seeds[i], offsets[i] + j)`:

        token = sample(row)                      # argmax, ties to the lowest id, if greedy
        emit token; go on with row j + 1 only if token == draft[j]

    A draft `d` is thereby accepted with probability p(d), and on a rejection the emitted token
    follows p without d, renormalised: rejection sampling for a one-hot draft (Leviathan et al.,
    2023, section 2.3), with the same acceptance rate. Moreover the emitted token of a row does not
    depend on the draft at all, so seed and offset fix the output whatever was drafted and whatever
    else is in the batch.

    The processed distribution: `softmax(logits / temperature)` restricted to the tokens that
    `min_p`, `top_k` and `top_p` all keep. min_p keeps p >= min_p * max p; top_k keeps logits >= the
    k-th largest (all ties); top_p keeps, of those left and renormalised, each token with less than
    top_p of mass strictly above it (ties stay together, the most likely token always stays).

    A NaN counts as +inf. In a greedy row the first such token wins, as in vLLM; a sampled row
    without a finite maximum (NaN, +inf, or nothing but -inf) accepts no draft and emits token 0.

    Args:
        max_draft: the largest number of drafts of any request, if the caller knows it; otherwise it
            is read from `cu_num_draft_tokens`, for which the host waits on a GPU.
        backend: `auto` takes Triton for CUDA tensors; for all others compiled code where every
            request is greedy, and torch where one is not.

    Returns:
        Token ids [batch, max_draft + 1] int32 (accepted drafts, then one more token, then -1), and
        the number of accepted drafts [batch] int32.

    Raises:
        ValueError: shapes, dtypes or devices do not fit. Values are not looked at.

    Example:
        >>> logits = torch.tensor([[0.0, 9.0, 1.0], [7.0, 0.0, 2.0]])
        >>> greedy = dict.fromkeys(("temperature", "top_k", "top_p", "min_p", "seeds", "offsets"))
        >>> tokens, accepted = verify_drafts(logits, torch.tensor([1]), torch.tensor([1]), **greedy)
        >>> tokens.tolist(), accepted.tolist()
        ([[1, 0]], [1])
    """
    batch = _check_rows(logits, draft_token_ids, cu_num_draft_tokens)
    per_request = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "seeds": seeds,
        "offsets": offsets,
    }
    for name, tensor in per_request.items():
        if tensor is not None:
            _check_per_request(name, tensor, batch=batch, device=logits.device)
    if temperature is not None and (seeds is None or offsets is None):
        raise ValueError("expected seeds and offsets wherever temperature is given, came None")
    if backend not in ("auto", "torch", "triton"):
        raise ValueError(f"expected backend 'auto', 'torch' or 'triton', came {backend!r}")
    if max_draft is None:
        first = cu_num_draft_tokens.diff(prepend=cu_num_draft_tokens.new_zeros(1))
        max_draft = int(first.max())
    if temperature is None:
        top_k = top_p = min_p = seeds = offsets = None

    if backend == "auto" and temperature is None and not logits.is_cuda:
        from reprise.kernels.verify.greedy_cpu import verify_drafts_greedy

        verified = verify_drafts_greedy(
            logits, draft_token_ids, cu_num_draft_tokens, max_draft=max_draft
        )
        if verified is not None:
            return verified
    if backend == "triton" or (backend == "auto" and logits.is_cuda):
        from reprise.kernels.verify.triton_kernels import verify_drafts_triton as run
    else:
        from reprise.kernels.verify.reference import verify_drafts_torch as run
    return run(
        logits,
        draft_token_ids,
        cu_num_draft_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seeds=seeds,
        offsets=offsets,
        max_draft=max_draft,
    )


def check_logits(logits: torch.Tensor, *, rows: str) -> None:
    """Check logits [rows, vocab].

    Raises:
        ValueError: one line with what was expected and what came.
    """
    if logits.ndim != 2 or logits.dtype not in LOGITS_DTYPES or logits.shape[1] == 0:
        raise ValueError(
            f"expected logits [{rows}, vocab] of bfloat16, float16 or float32, "
            f"came {list(logits.shape)} of {logits.dtype}"
        )
    if logits.stride(1) != 1 and logits.shape[1] > 1:
        raise ValueError(f"expected logits contiguous within a row, came stride {logits.stride()}")


def _check_rows(
    logits: torch.Tensor, draft_token_ids: torch.Tensor, cu_num_draft_tokens: torch.Tensor
) -> int:
    """Check what spans the batch and return the number of requests."""
    check_logits(logits, rows="num_draft + batch")
    named = (("draft_token_ids", draft_token_ids), ("cu_num_draft_tokens", cu_num_draft_tokens))
    for name, tensor in named:
        if tensor.ndim != 1 or tensor.dtype not in INT_DTYPES or tensor.device != logits.device:
            raise ValueError(
                f"expected {name} one-dimensional, int32 or int64, on {logits.device}; "
                f"came {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
            )
    batch, num_draft = cu_num_draft_tokens.shape[0], draft_token_ids.shape[0]
    if batch == 0 or logits.shape[0] != num_draft + batch:
        raise ValueError(
            "expected at least one request and num_draft + batch rows of logits, "
            f"came {num_draft} drafts, {batch} requests and {logits.shape[0]} rows"
        )
    return batch


def _check_per_request(
    name: str, tensor: torch.Tensor, *, batch: int, device: torch.device
) -> None:
    integral = name in ("top_k", "seeds", "offsets")
    fits = tensor.dtype in INT_DTYPES if integral else tensor.is_floating_point()
    if tensor.shape != (batch,) or not fits or tensor.device != device:
        kind = "int32 or int64" if integral else "floating point"
        raise ValueError(
            f"expected {name} [{batch}] of {kind} on {device}, "
            f"came {list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        )
