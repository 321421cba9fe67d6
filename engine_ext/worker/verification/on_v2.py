"""On model runner V2 drafts are verified so that they change no sample: `kernels.verify_coupled`.

`RejectionSampler._verify` is wrapped. vLLM's own tests each draft with a number of its own and
draws what replaces a rejected one; the samples that come out are right, and others than without
drafts. Here each position gets the sample that vLLM's sampler draws for its seed, so that a request
has the same answer whatever was drafted.

Temperature, top-k, top-p and min-p are applied while the logits are read. Where more acts on a
batch (penalties, a bias, bad words, another logits processor, a thinking budget), or its processed
logits are asked for, vLLM processes the logits, and what it returns is verified. What is left to
vLLM is counted by the reason; a sampled request with a seed gets one token there, its own sample.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import torch

from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.worker.verification.rank_agreement import num_ranks
from reprise.engine_ext.worker.verification.state import (
    Installation,
    init_sampler,
    installation_of,
)
from reprise.kernels.verify import Backend
from reprise.kernels.verify.coupled import verify_coupled

__all__ = ["init_sampler", "verify", "verify_by_vllm"]
"""The hooks of `Feature.VERIFICATION_V2`."""

Verified = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Processed logits [rows, vocab], tokens [num_reqs, steps + 1] and how many they are [num_reqs]."""


def verify(
    original: Original,
    rejection_sampler: Any,
    logits: torch.Tensor,  # [rows, vocab]
    draft_logits: torch.Tensor | None,
    draft_sampled: torch.Tensor,  # [rows]
    pos: torch.Tensor,  # [rows]
    cu_num_logits: torch.Tensor,  # [num_reqs + 1]
    idx_mapping: torch.Tensor,  # [num_reqs]
    idx_mapping_np: np.ndarray[Any, np.dtype[np.int32]],  # [num_reqs]
    expanded_idx_mapping: torch.Tensor,  # [rows]
    expanded_local_pos: torch.Tensor,  # [rows]
    seq_lens_upper_bound_np: np.ndarray[Any, np.dtype[np.int32]],  # [num_reqs]
    verify_draft_sampled: torch.Tensor,  # [rows]
) -> Verified:
    """Verify a batch, or leave it to vLLM: the hook of `Feature.VERIFICATION_V2`."""
    rows = expanded_idx_mapping, verify_draft_sampled
    if (installed := installation_of(rejection_sampler)) is None:
        return original()  # type: ignore[no-any-return]
    if not installed.active:
        return _verify_by_vllm(original, rejection_sampler, idx_mapping_np, *rows)

    def process() -> torch.Tensor:
        return rejection_sampler.sampler.apply_sampling_params(  # type: ignore[no-any-return]
            logits,
            expanded_idx_mapping,
            idx_mapping,
            idx_mapping_np,
            pos,
            draft_sampled,
            expanded_local_pos,
            seq_lens_upper_bound_np,
        )

    try:
        reason = reason_to_fall_through(rejection_sampler, logits, draft_logits)
        if reason is None:
            verified = _verify(
                installed,
                rejection_sampler,
                logits,
                (verify_draft_sampled, pos, expanded_idx_mapping, cu_num_logits),
                idx_mapping_np,
                process,
            )
            installed.count_verified()
            return verified
    except Exception as error:
        installed.leave_to_vllm(error)
        reason = "error"
    installed.count_fall_through(reason)
    return _verify_by_vllm(original, rejection_sampler, idx_mapping_np, *rows)


def verify_by_vllm(original: Original, rejection_sampler: Any, *given: Any) -> Any:
    """Leave a batch, and all later ones, to vLLM, without its drafts: those of a request with a
    seed could change its sample."""
    if (installed := installation_of(rejection_sampler)) is None:
        return original()
    if installed.active or num_ranks() > 1:
        installed.leave_to_vllm(RuntimeError("see the error above"))
    return original.with_last(torch.full_like(given[-1], -1))


def _verify_by_vllm(
    original: Original,
    rejection_sampler: Any,
    slots: np.ndarray[Any, np.dtype[np.int32]],  # [num_reqs]
    row_slots: torch.Tensor,  # [rows]
    row_token_ids: torch.Tensor,  # [rows]
) -> Verified:
    """Have vLLM verify all but the drafts of sampled requests with a seed, which are not accepted.

    What it draws in place of a draft that is none is the sample without drafts.
    """
    from vllm.utils.torch_utils import async_tensor_h2d

    settings = rejection_sampler.sampler.sampling_states
    promised = settings.seeds_set & (settings.temperature.np != 0.0)  # [max_num_reqs]
    if not np.any(promised[slots]):
        return original()  # type: ignore[no-any-return]
    keeps = async_tensor_h2d(promised, row_slots.device)[row_slots.long()]
    return original.with_last(row_token_ids.masked_fill(keeps, -1))  # type: ignore[no-any-return]


def reason_to_fall_through(
    rejection_sampler: Any, logits: torch.Tensor, draft_logits: torch.Tensor | None
) -> str | None:
    """Return why this batch is left to vLLM, as a metric's label; None if it qualifies."""
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    sampler = rejection_sampler.sampler
    checks = {
        "watermark": rejection_sampler.watermark_key is not None,
        "another sampler": type(sampler) is not Sampler,
        "synthetic acceptance": rejection_sampler.synthetic_conditional_rates is not None,
        "block verification": rejection_sampler.use_block_verification,
        # Of vLLM 0.33: accepts drafted tokens that the model would not have sampled.
        "lossy acceptance": getattr(rejection_sampler, "fly_window_size", 0) > 0,
        "noise of 64 bits": sampler.use_fp64_gumbel,
        "draft probabilities": draft_logits is not None,
        "shape": logits.ndim != 2 or logits.stride(-1) != 1,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _verify(
    installed: Installation,
    rejection_sampler: Any,
    logits: torch.Tensor,  # [rows, vocab]
    layout: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    slots: np.ndarray[Any, np.dtype[np.int32]],  # [num_reqs]
    process: Callable[[], torch.Tensor],
) -> Verified:
    """Sample and verify a batch that qualifies."""
    max_draft = rejection_sampler.num_speculative_steps
    installed.try_once(lambda: try_kernels(logits, max_draft, backend=installed.config.backend))
    sampler = rejection_sampler.sampler
    settings = sampler.sampling_states
    given: dict[str, torch.Tensor | None] = dict.fromkeys(("top_k", "top_p", "min_p"))
    if is_processed := needs_vllms_processing(sampler, slots):
        logits = process()
    else:
        if np.any(settings.top_k.np[slots] != settings.vocab_size):
            given["top_k"] = settings.top_k.gpu
        if np.any(settings.top_p.np[slots] != 1.0):
            given["top_p"] = settings.top_p.gpu
        if np.any(settings.min_p.np[slots] != 0.0):
            given["min_p"] = settings.min_p.gpu
    samples = bool(np.any(settings.temperature.np[slots] != 0.0))
    tokens, num_sampled = verify_coupled(
        logits,
        *layout,
        temperature=settings.temperature.gpu if samples else None,
        top_k=given["top_k"],
        top_p=given["top_p"],
        min_p=given["min_p"],
        seeds=settings.seeds.gpu,
        max_draft=max_draft,
        is_scaled=is_processed,
        backend=installed.config.backend,
    )
    return logits, tokens, num_sampled


def needs_vllms_processing(sampler: Any, slots: np.ndarray[Any, np.dtype[np.int32]]) -> bool:
    """Return whether more acts on these requests than temperature, top-k, top-p and min-p, or
    their processed logits are wanted."""
    from vllm.config.model import PROCESSED_LOGPROBS_MODES
    from vllm.v1.worker.gpu.sample.states import NO_LOGPROBS

    if sampler.return_sampling_mask:
        return True
    wants_logprobs = sampler.sampling_states.max_num_logprobs(slots) != NO_LOGPROBS
    if wants_logprobs and sampler.logprobs_mode in PROCESSED_LOGPROBS_MODES:
        return True
    thinking = sampler.thinking_budget_state
    if thinking.enabled and np.any(thinking.use_thinking_budget[slots]):
        return True
    return any(_may_act(processor, slots) for processor in sampler.logits_processors)


def _may_act(processor: Any, slots: np.ndarray[Any, np.dtype[np.int32]]) -> bool:
    """Return whether a logits processor may change these requests; vLLM's own are known."""
    from vllm.v1.worker.gpu.sample.bad_words import BadWordsState
    from vllm.v1.worker.gpu.sample.logit_bias import LogitBiasState
    from vllm.v1.worker.gpu.sample.penalties import PenaltiesState

    kind = type(processor)
    if kind is LogitBiasState:
        return bool(np.any(processor.use_logit_bias[slots]))
    if kind is PenaltiesState:
        return bool(np.any(processor.use_penalty[slots]))
    if kind is BadWordsState:
        return bool(np.any(processor.num_bad_words.np[slots]))
    return True


def try_kernels(logits: torch.Tensor, max_draft: int, *, backend: Backend = "auto") -> None:
    """Compile what serving will run, and compare the noise with vLLM's.

    The first batch with drafts is of vLLM's own warm-up, which can wait for it. `logits`
    [rows, vocab] gives dtype, vocabulary and device; its values are not read.

    Raises:
        RuntimeError: vLLM draws other samples for the same seeds.
    """
    _compare_noise(logits.device, backend)
    if logits.is_cuda:
        compile_kernels(logits, max_draft, backend=backend)


def compile_kernels(logits: torch.Tensor, max_draft: int, *, backend: Backend = "auto") -> None:
    """Run what a batch may ask for, once each: see `try_kernels`."""
    limits: dict[str, float] = {"top_k": 2, "top_p": 0.5, "min_p": 0.5}
    few, many = 2, 4096 * 4096 // logits.shape[1] + 1  # rows are spread in two ways
    chosen = [(few, names) for n in range(4) for names in combinations(limits, n)]
    # Only whether there is one, and whether there is top-p, matters to what is spread.
    chosen += [(many, names) for names in ((), ("top_k",), ("top_p",))]
    for batch, names in chosen:
        _run(logits, batch, max_draft, {name: limits[name] for name in names}, backend)
    # As vLLM returns them: as they were, where nothing had to be done.
    processed = torch.empty_like(logits, dtype=torch.float32)
    for batch in (few, many):
        for like in (logits, processed):
            _run(like, batch, max_draft, {}, backend, is_scaled=True)


def _run(
    logits: torch.Tensor,
    batch: int,
    max_draft: int,
    limits: dict[str, float],
    backend: Backend,
    *,
    is_scaled: bool = False,
) -> None:
    """Verify requests without drafts, at a temperature and with these limits, whose logits lie as
    these do: the kernels depend on that."""
    device, vocab = logits.device, logits.shape[1]

    def full(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((batch,), value, dtype=dtype, device=device)

    # Types as vLLM hands them over.
    rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
    empty = torch.empty_strided((batch, vocab), logits.stride(), dtype=logits.dtype, device=device)
    verify_coupled(
        empty.zero_(),
        rows[:-1],
        full(0, torch.int64),
        rows[:-1].to(torch.int64),
        rows,
        temperature=full(0.5, torch.float32),
        top_k=full(limits["top_k"], torch.int32) if "top_k" in limits else None,
        top_p=full(limits["top_p"], torch.float32) if "top_p" in limits else None,
        min_p=full(limits["min_p"], torch.float32) if "min_p" in limits else None,
        seeds=full(1, torch.int64),
        max_draft=max_draft,
        is_scaled=is_scaled,
        backend=backend,
    )


def _compare_noise(device: torch.device, backend: Backend) -> None:
    """Compare samples of nothing but noise: one row for each of a few seeds and positions."""
    from vllm.v1.worker.gpu.sample.gumbel import gumbel_sample

    batch, vocab = 8, 3000
    rows = torch.arange(batch + 1, dtype=torch.int32, device=device)
    seeds = torch.arange(-4, 4, device=device) * 0x123456789ABCDEF
    positions = torch.arange(batch, device=device) * 1001
    temperature = torch.ones(batch, device=device)
    logits = torch.zeros((batch, vocab), device=device)
    theirs = gumbel_sample(
        logits, rows[:-1], temperature, seeds, positions, apply_temperature=False, is_drafting=False
    )
    ours, _ = verify_coupled(
        logits,
        rows[:-1],
        positions,
        rows[:-1],
        rows,
        temperature=temperature,
        top_k=None,
        top_p=None,
        min_p=None,
        seeds=seeds,
        max_draft=0,
        backend=backend,
    )
    if not torch.equal(ours[:, 0], theirs):
        raise RuntimeError(
            f"vLLM samples {theirs.tolist()} where our noise gives {ours[:, 0].tolist()}"
        )
