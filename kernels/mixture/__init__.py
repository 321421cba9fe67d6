"""Drafting on the device by the core of the host's predictor: mixture and choice."""

from __future__ import annotations

import torch

from reprise.kernels.draft import Backend, check
from reprise.kernels.draft.state import DraftState
from reprise.kernels.mixture.state import MixtureState


def draft_by_mixture(
    state: DraftState,
    mixture: MixtureState,
    *,
    all_token_ids: torch.Tensor,  # [num_slots, max_model_len] int32, any row stride
    total_len: torch.Tensor,  # [num_slots] int32
    idx_mapping: torch.Tensor,  # [num_reqs] int32 or int64: the slot of each row of the batch
    num_sampled: torch.Tensor,  # [num_reqs] int32: in this step; 0: nothing is drafted
    drafts: torch.Tensor,  # [num_reqs, K] int64: out
    chances: torch.Tensor,  # [num_reqs, K] float32: out
    backend: Backend = "auto",
) -> None:
    """Draft up to K tokens for each row of the batch: the likeliest next token, time and again.

    The interface is that of `reprise.kernels.draft.draft_tokens`, and so is what rows get that are
    not drafted for. Each token comes with its chance, given those before it, by the mixture over
    all places that predict it and the choice among the likeliest (`reference`). A draft ends where
    nothing predicts a token, and with the first token with which it is right as a whole with less
    than LEAST_CHANCE; then tokens are the row's last one, with chance 0.

    The alignment with near answers after each token of a draft is kept, so that the next draft goes
    on from the last token that was right. Weights are read and not changed. The host never waits,
    nothing is allocated, and launches depend on shapes only.

    Args:
        backend: `auto` takes Triton for CUDA tensors, the definition for all others.

    Raises:
        ValueError: as `draft_tokens`.
    """
    check(state, all_token_ids, total_len, idx_mapping, num_sampled, drafts, chances, backend)
    if drafts.numel() == 0:
        return
    if backend == "triton" or (backend == "auto" and drafts.is_cuda):
        from reprise.kernels.mixture.triton_mixture import mixture_tokens_triton as run
    else:
        from reprise.kernels.mixture.torch_backend import mixture_tokens_torch as run
    run(
        state,
        mixture,
        all_token_ids=all_token_ids,
        total_len=total_len,
        idx_mapping=idx_mapping,
        num_sampled=num_sampled,
        drafts=drafts,
        chances=chances,
    )
