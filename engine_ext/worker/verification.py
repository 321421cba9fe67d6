"""vLLM's V1 rejection sampler verifies with `kernels.verify_drafts`, wherever a batch allows it.

`RejectionSampler.forward` is wrapped. A batch that does not qualify goes to vLLM's own code; both
are counted. Where no request has drafts, that is vLLM's sampler, without rejection sampling around
it: the step costs what it costs without speculation.

Seeds: a request with a seed of its own is promised vLLM's own sample, drawn from vLLM's own
generator, so a batch with such a request is left to vLLM. All other requests get a fresh seed for
every step, from a generator that starts at the engine's seed and advances alike on all
tensor-parallel ranks.

Ranks: whether verification works is found out before its first use and agreed on by all
tensor-parallel ranks. After an error later on vLLM verifies, where there is one rank; where there
are more, the worker ends, and so does the engine: one rank alone must not sample otherwise than the
others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.logger import init_logger

from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.worker.rank_agreement import all_ranks_can, num_ranks
from reprise.kernels.config import VerifyConfig
from reprise.kernels.verify import verify_drafts

if TYPE_CHECKING:
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

logger = init_logger(__name__)

_MANY_LOGITS = 4096 * 4096
_DTYPES = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32}


@dataclass
class VerificationCounts:
    """Batches since the process began; those of vLLM's own warm-up are among them."""

    verified: int = 0
    """Batches that `verify_drafts` verified; their requests may have had no drafts."""
    undrafted: int = 0
    """Batches without any draft that vLLM's sampler sampled."""
    fallen_through: dict[str, int] = field(default_factory=dict)
    """Batches that vLLM verified itself, by the reason."""


class _NotOnAllRanksError(Exception):
    """A rank cannot verify: no rank does, from now on."""


class _Installation:
    """What is in force in this process. Without a lock: an engine samples in one thread."""

    def __init__(self) -> None:
        self.config = VerifyConfig()
        self.active = False
        self.samples = False
        """Whether requests that are not greedy are ours as well."""
        self.is_warm = False
        self.counts = VerificationCounts()
        self.noise: np.random.Generator | None = None


_installed = _Installation()


def configure(config: VerifyConfig) -> bool:
    """Verify with `verify_drafts` from now on, as `config` says; the latest call holds.

    Returns:
        Whether `Feature.VERIFICATION` is to be applied.
    """
    from vllm.platforms import current_platform

    _installed.active = config.enabled is not False
    _installed.samples = current_platform.is_cuda() or config.enabled is True
    _installed.config = config
    if _installed.active and not current_platform.is_cuda():
        # Not before vLLM has replaced its Triton kernels: it trips over a loaded numba.
        from reprise.kernels.verify.greedy_cpu import verify_drafts_greedy

        # Compiled, or read from the disk, before a request waits for it.
        one = torch.ones(1, dtype=torch.int32)
        verify_drafts_greedy(torch.zeros(2, 2), one, one, max_draft=1)
    return _installed.active


def deactivate() -> None:
    """Leave all verification to vLLM from now on."""
    _installed.active = False


def verification_counts() -> VerificationCounts:
    """Return the counts of this process; the caller must not change them."""
    return _installed.counts


def forward(
    original: Original,
    sampler: Any,
    metadata: SpecDecodeMetadata,
    draft_probs: torch.Tensor | None,
    logits: torch.Tensor,
    sampling_metadata: SamplingMetadata,
) -> Any:
    """Verify a batch, or leave it to vLLM: the hook of `Feature.VERIFICATION`."""
    if not _installed.active:
        return original()

    def sample() -> Any:
        return sampler.sampler(logits=logits, sampling_metadata=sampling_metadata)

    if metadata.max_spec_len == 0 and not logits.is_cuda:
        # vLLM's sampler takes two thirds of the time that it takes to verify nothing.
        _installed.counts.undrafted += 1
        return original.instead(sample)
    reason = reason_to_fall_through(sampler, metadata, draft_probs, logits, sampling_metadata)
    if reason is None:
        try:
            output = _verify(metadata, logits, sampling_metadata)
        except Exception as error:
            _leave_to_vllm(error)
            reason = "error"
        else:
            _installed.counts.verified += 1
            return output
    if metadata.max_spec_len == 0:
        _installed.counts.undrafted += 1
        return original.instead(sample)
    fallen_through = _installed.counts.fallen_through
    fallen_through[reason] = fallen_through.get(reason, 0) + 1
    return original()


def forward_of_vllm(original: Original, *_: Any, **__: Any) -> Any:
    """Leave a batch, and all later ones, to vLLM."""
    if _installed.active:
        _leave_to_vllm(RuntimeError("see the error above"))
    return original()


def _leave_to_vllm(error: Exception) -> None:
    """Stop verifying: a kernel that fails must not end the engine, nor part it from other ranks.

    Raises:
        SystemExit: other ranks sample with the kernel. vLLM ends an engine of which a worker ends;
            an exception of another kind it would only log, on all ranks but one.
    """
    _installed.active = False
    if num_ranks() > 1 and not isinstance(error, _NotOnAllRanksError):
        logger.critical(
            "Reprise: verification failed on one of several tensor-parallel ranks, whose tokens "
            "would differ from the others' from now on; the worker ends. With "
            "verification.enabled=false vLLM verifies by itself.",
            exc_info=error,
        )
        raise SystemExit("Reprise: verification failed on one tensor-parallel rank") from error
    logger.error("Reprise: verification failed; vLLM's own is used.", exc_info=error)


def reason_to_fall_through(
    sampler: Any,
    metadata: SpecDecodeMetadata,
    draft_probs: torch.Tensor | None,  # [num_draft, vocab]
    logits: torch.Tensor,  # [num_draft + batch, vocab]
    sampling_metadata: SamplingMetadata,
) -> str | None:
    """Return why this batch is left to vLLM, as a metric's label; None if it qualifies."""
    one = sampling_metadata
    holder = one.thinking_budget_state_holder
    batch, num_draft = len(metadata.num_draft_tokens), metadata.draft_token_ids.shape[0]
    checks = {
        "synthetic acceptance": sampler.synthetic_mode,
        # Of vLLM 0.33: accepts drafted tokens that the model would not have sampled.
        "lossy acceptance": getattr(sampler, "use_fly", False),
        "noise of 64 bits": sampler.use_fp64_gumbel,
        "draft probabilities": draft_probs is not None,
        "seeds": bool(one.generators) and not one.all_greedy,
        "penalties": not one.no_penalties,
        "bad words": bool(one.bad_words_token_ids),
        "allowed tokens": one.allowed_token_ids_mask is not None,
        "logprobs": one.max_num_logprobs is not None or bool(one.logprob_token_ids),
        "logits processors": any(map(_may_act, one.logitsprocs.all)),
        "thinking budget": holder is not None and holder.has_tracked_requests(),
        "sampling on a CPU": not (one.all_greedy or _installed.samples),
        "shape": logits.shape[0] != num_draft + batch,
    }
    return next((reason for reason, holds in checks.items() if holds), None)


def _may_act(processor: Any) -> bool:
    """Return whether a logits processor may change this batch; vLLM's own are known."""
    from vllm.v1.sample.logits_processor.builtin import (
        LogitBiasLogitsProcessor,
        MinPLogitsProcessor,
        MinTokensLogitsProcessor,
    )

    kind = type(processor)
    if kind is MinTokensLogitsProcessor:
        return bool(processor.min_toks)
    if kind is MinPLogitsProcessor:
        return bool(processor.min_p_count)
    if kind is LogitBiasLogitsProcessor:
        return bool(processor.biases)
    return True


def _verify(
    metadata: SpecDecodeMetadata, logits: torch.Tensor, sampling_metadata: SamplingMetadata
) -> Any:
    """Sample and verify a batch that qualifies: a `SamplerOutput`."""
    from vllm.v1.outputs import SamplerOutput

    if logits.is_cuda and not _installed.is_warm:
        _installed.is_warm = True
        _try_on_all_ranks(logits)
    seeds = offsets = None
    if not sampling_metadata.all_greedy:
        noise = draw_noise(len(metadata.num_draft_tokens))
        if logits.is_cuda:
            noise = noise.pin_memory()
        seeds, offsets = noise.to(logits.device, non_blocking=True)
    tokens, _accepted = verify_drafts(
        logits,
        metadata.draft_token_ids,
        metadata.cu_num_draft_tokens,
        temperature=None if sampling_metadata.all_greedy else sampling_metadata.temperature,
        top_k=sampling_metadata.top_k,
        top_p=sampling_metadata.top_p,
        min_p=None,
        seeds=seeds,
        offsets=offsets,
        backend=_installed.config.backend,
        max_draft=metadata.max_spec_len,
    )
    return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=None)


def _try_on_all_ranks(logits: torch.Tensor) -> None:
    """Try the kernels before the first batch, which all ranks have at the same time.

    Raises:
        _NotOnAllRanksError: this rank or another one cannot verify.
    """
    failed: Exception | None = None
    try:
        warm_up(logits)
    except Exception as error:
        failed = error
    if not all_ranks_can(failed is None):
        raise _NotOnAllRanksError("the kernels do not run on all ranks") from failed


def draw_noise(batch: int) -> torch.Tensor:
    """Draw fresh seeds, with offsets of 0: [2, batch] int64 on the CPU."""
    if _installed.noise is None:
        # vLLM has seeded torch with the engine's seed by now, on every rank with the same.
        _installed.noise = np.random.default_rng(torch.initial_seed() % 2**64)
    noise = np.zeros((2, batch), dtype=np.int64)
    noise[0] = _installed.noise.integers(-(2**63), 2**63, size=batch, dtype=np.int64)
    return torch.from_numpy(noise)


def warm_up(logits: torch.Tensor) -> None:
    """Compile what serving will run; the first batch is vLLM's own warm-up, which can wait for it.

    `logits` [rows, vocab] gives dtype, vocabulary and device; its values are not read.
    """
    vocab = logits.shape[1]
    temperature: dict[str, float] = {"temperature": 0.5}
    settings: list[dict[str, float]]
    settings = [{}, temperature, {"top_k": 2}, {"top_p": 0.5}, {"top_k": 2, "top_p": 0.5}]
    runs = [(1, 1, chosen) for chosen in settings]
    # The last kernel differs by the power of two above the longest draft; and a batch of many rows
    # is spread over the device in another way.
    runs += [(1, 2**power - 1, settings[0]) for power in range(6)]
    runs += [(_MANY_LOGITS // vocab + 1, 1, chosen) for chosen in settings[:2]]
    for batch, drafts, chosen in runs:
        given = {
            name: torch.full((batch,), value, device=logits.device, dtype=_DTYPES[name])
            for name, value in (chosen and temperature | chosen).items()
        }
        verify_drafts(
            logits.new_zeros((batch * (drafts + 1), vocab)),
            torch.zeros(batch * drafts, dtype=torch.int32, device=logits.device),
            torch.arange(1, batch + 1, dtype=torch.int32, device=logits.device) * drafts,
            temperature=given.get("temperature"),
            top_k=given.get("top_k"),
            top_p=given.get("top_p"),
            min_p=None,
            seeds=torch.zeros(batch, dtype=torch.int64, device=logits.device),
            offsets=torch.zeros(batch, dtype=torch.int64, device=logits.device),
            backend=_installed.config.backend,
            max_draft=drafts,
        )
