"""On model runner V1 a batch that allows it is verified with `kernels.verify_drafts`.

`RejectionSampler.forward` is wrapped. A batch that does not qualify goes to vLLM's own code; both
are counted. Where no request has drafts, that is vLLM's sampler, without rejection sampling around
it: the step costs what it costs without speculation.

Seeds: a request with a seed of its own is promised vLLM's own sample, drawn from vLLM's own
generator. On a CPU `same_samples_v1` verifies a batch in which such a request, or one with `min_p`
or `logit_bias`, has drafts. On CUDA they have none, and a batch with one of them is left to vLLM.
Where all is ours, requests get a fresh seed for every step, from a generator that starts at the
engine's seed and advances alike on all tensor-parallel ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.worker.verification import same_samples_v1
from reprise.engine_ext.worker.verification.state import (
    Installation,
    init_sampler,
    installation_of,
)
from reprise.kernels.verify import Backend, verify_drafts

if TYPE_CHECKING:
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

_MANY_LOGITS = 4096 * 4096
_DTYPES = {"temperature": torch.float32, "top_k": torch.int32, "top_p": torch.float32}


__all__ = ["forward", "forward_of_vllm", "init_sampler"]
"""The hooks of `Feature.VERIFICATION`."""


def prepare(installed: Installation) -> None:
    """Compile what a CPU verifies with, or read it from the disk, before a request waits."""
    from vllm.platforms import current_platform

    if current_platform.is_cuda():
        return
    installed.keeps_samples = current_platform.is_cpu() and same_samples_v1.sampler_draws_so()
    # Not before vLLM has replaced its Triton kernels: it trips over a loaded numba.
    from reprise.kernels.verify.greedy_cpu import verify_drafts_greedy

    one = torch.ones(1, dtype=torch.int32)
    verify_drafts_greedy(torch.zeros(2, 2), one, one, max_draft=1)


def forward(
    original: Original,
    sampler: Any,
    metadata: SpecDecodeMetadata,
    draft_probs: torch.Tensor | None,
    logits: torch.Tensor,
    sampling_metadata: SamplingMetadata,
) -> Any:
    """Verify a batch, or leave it to vLLM: the hook of `Feature.VERIFICATION`."""
    if (installed := installation_of(sampler)) is None:
        return original()
    if _asks_for_given_tokens(metadata, sampling_metadata):
        installed.count_fall_through("logprobs of given tokens")
        return _drop_drafts(original, sampler, metadata, logits, sampling_metadata)
    if same_samples_v1.must_verify(metadata, sampling_metadata):
        given = sampler, metadata, draft_probs, logits, sampling_metadata
        return _keep_samples(original, installed, *given)
    if not installed.active:
        return original()

    def sample() -> Any:
        return sampler.sampler(logits=logits, sampling_metadata=sampling_metadata)

    if metadata.max_spec_len == 0 and not logits.is_cuda:
        # vLLM's sampler takes two thirds of the time that it takes to verify nothing.
        installed.count_undrafted()
        return original.instead(sample)
    reason = reason_to_fall_through(
        installed, sampler, metadata, draft_probs, logits, sampling_metadata
    )
    if reason is None:
        try:
            output = _verify(installed, metadata, logits, sampling_metadata)
        except Exception as error:
            installed.leave_to_vllm(error)
            reason = "error"
        else:
            installed.count_verified()
            return output
    if metadata.max_spec_len == 0:
        installed.count_undrafted()
        return original.instead(sample)
    installed.count_fall_through(reason)
    return original()


def forward_of_vllm(
    original: Original,
    sampler: Any,
    metadata: SpecDecodeMetadata,
    draft_probs: torch.Tensor | None,  # noqa: ARG001
    logits: torch.Tensor,
    sampling_metadata: SamplingMetadata,
) -> Any:
    """Leave a batch, and all later ones, to vLLM; without the drafts that would change samples."""
    if (installed := installation_of(sampler)) is None:
        return original()
    if installed.active:
        installed.leave_to_vllm(RuntimeError("see the error above"))
    if _asks_for_given_tokens(metadata, sampling_metadata) or same_samples_v1.must_verify(
        metadata, sampling_metadata
    ):
        return _drop_drafts(original, sampler, metadata, logits, sampling_metadata)
    return original()


def _asks_for_given_tokens(
    metadata: SpecDecodeMetadata, sampling_metadata: SamplingMetadata
) -> bool:
    """Return whether a batch with drafts has a request with `logprob_token_ids`: for those vLLM's
    rejection sampler returns nothing, and it fails where another request wants logprobs."""
    return bool(sampling_metadata.logprob_token_ids) and metadata.max_spec_len > 0


def _keep_samples(
    original: Original,
    installed: Installation,
    sampler: Any,
    metadata: SpecDecodeMetadata,
    draft_probs: torch.Tensor | None,
    logits: torch.Tensor,
    sampling_metadata: SamplingMetadata,
) -> Any:
    """Verify a batch by what vLLM's sampler draws, or sample it without the drafts."""
    reason = "inactive" if not installed.keeps_samples_now else None
    checks = _checks_of_the_sampler(sampler, draft_probs)
    reason = reason or next((each for each, holds in checks.items() if holds), None)
    if reason is None:
        try:
            output = same_samples_v1.verify(sampler, metadata, logits, sampling_metadata)
        except Exception as error:
            installed.leave_to_vllm(error)
            reason = "error"
        else:
            installed.count_verified()
            return output
    installed.count_fall_through(reason)
    return _drop_drafts(original, sampler, metadata, logits, sampling_metadata)


def _drop_drafts(
    original: Original,
    sampler: Any,
    metadata: SpecDecodeMetadata,
    logits: torch.Tensor,
    sampling_metadata: SamplingMetadata,
) -> Any:
    """Sample a batch without its drafts, in place of vLLM's verification."""
    given = sampler.sampler, metadata, logits, sampling_metadata
    return original.instead(lambda: same_samples_v1.without_drafts(*given))


def _checks_of_the_sampler(sampler: Any, draft_probs: torch.Tensor | None) -> dict[str, bool]:
    """Why no batch at all can be verified here, as metrics' labels, and whether it is so."""
    return {
        "synthetic acceptance": sampler.synthetic_mode,
        # Of vLLM 0.33: accepts drafted tokens that the model would not have sampled.
        "lossy acceptance": getattr(sampler, "use_fly", False),
        "noise of 64 bits": sampler.use_fp64_gumbel,
        "draft probabilities": draft_probs is not None,
    }


def reason_to_fall_through(
    installed: Installation,
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
    checks = _checks_of_the_sampler(sampler, draft_probs) | {
        "seeds": bool(one.generators) and not one.all_greedy,
        "penalties": not one.no_penalties,
        "bad words": bool(one.bad_words_token_ids),
        "allowed tokens": one.allowed_token_ids_mask is not None,
        "logprobs": one.max_num_logprobs is not None or bool(one.logprob_token_ids),
        "logits processors": any(map(_may_act, one.logitsprocs.all)),
        "thinking budget": holder is not None and holder.has_tracked_requests(),
        "sampling on a CPU": not (one.all_greedy or installed.samples),
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
    installed: Installation,
    metadata: SpecDecodeMetadata,
    logits: torch.Tensor,
    sampling_metadata: SamplingMetadata,
) -> Any:
    """Sample and verify a batch that qualifies: a `SamplerOutput`."""
    from vllm.v1.outputs import SamplerOutput

    if logits.is_cuda:
        installed.try_once(lambda: warm_up(logits, backend=installed.config.backend))
    seeds = offsets = None
    if not sampling_metadata.all_greedy:
        noise = installed.draw_noise(len(metadata.num_draft_tokens))
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
        backend=installed.config.backend,
        max_draft=metadata.max_spec_len,
    )
    return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=None)


def warm_up(logits: torch.Tensor, *, backend: Backend = "auto") -> None:
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
            backend=backend,
            max_draft=drafts,
        )
