"""On a CPU's model runner V1 drafts change no sample of a request with a seed, and requests with
`min_p` or `logit_bias`, which vLLM's rejection sampler does not apply to drafted rows, have drafts.

vLLM's sampler draws one number for each token of such a request from the request's own generator:
the seed of that token's noise. Its rejection sampler spends others, so that a seed would give one
answer while the cache is cold and another one when it is warm. Here vLLM's *sampler* samples every
drafted row, with the numbers that it would have drawn there token by token; a draft is accepted
exactly if it equals the sample, and the generator is put back to where the emitted tokens leave it.
A draft's chance is its probability, as in rejection sampling, so nothing is lost.

Whatever cannot be verified so is sampled without its drafts, which is always right.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reprise.engine_ext.compat.engine_state import min_p_of_rows

if TYPE_CHECKING:
    from vllm.v1.outputs import SamplerOutput
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

_MAX_SEED = 2**31


def draw(generator: torch.Generator) -> int:
    """Draw what vLLM's CPU sampler draws for one token."""
    drawn = torch.randint(0, _MAX_SEED, (1,), generator=generator, dtype=torch.long)
    return int(drawn.item())


def sampler_draws_so() -> bool:
    """Return whether this vLLM's sampler takes from a generator what `draw` takes."""
    from vllm.v1.sample.sampler import Sampler

    asked, alone = (torch.Generator().manual_seed(7) for _ in range(2))
    rows = {0: asked, 1: asked}
    Sampler().topk_topp_sampler(torch.zeros(2, 8), rows, None, None)
    for _ in rows:
        draw(alone)
    return torch.equal(asked.get_state(), alone.get_state())


def must_verify(metadata: SpecDecodeMetadata, sampling_metadata: SamplingMetadata) -> bool:
    """Return whether a batch has drafts of a sampled request with a seed of its own, or of one with
    `min_p` or `logit_bias`."""
    num_draft = metadata.num_draft_tokens
    if any(num_draft[request] for request in sampling_metadata.generators):
        return True
    min_p, bias = _processors(sampling_metadata)
    return (bias is not None and any(num_draft[request] for request in bias.biases)) or (
        min_p is not None
        and min_p.min_p_count > 0
        and any(min_p.min_p_cpu[: len(num_draft)][np.asarray(num_draft) > 0] > 0.0)
    )


def verify(
    rejection_sampler: Any,
    metadata: SpecDecodeMetadata,
    logits: torch.Tensor,  # [num_draft + batch, vocab]
    sampling_metadata: SamplingMetadata,
) -> SamplerOutput:
    """Sample each row with its own noise, and keep a request's tokens up to the first miss.

    If it fails, the generators are as they were.
    """
    generators = sampling_metadata.generators
    before = {request: each.get_state() for request, each in generators.items()}
    try:
        output, num_emitted = _verify(rejection_sampler, metadata, logits, sampling_metadata)
    except Exception:
        for request, state in before.items():
            generators[request].set_state(state)
        raise
    for request, state in before.items():
        if metadata.num_draft_tokens[request]:
            generators[request].set_state(state)
            for _ in range(num_emitted[request]):
                draw(generators[request])
    return output


def without_drafts(
    sampler: Any,
    metadata: SpecDecodeMetadata,
    logits: torch.Tensor,  # [num_draft + batch, vocab]
    sampling_metadata: SamplingMetadata,
) -> SamplerOutput:
    """Sample one token for each request, from the row before its drafts."""
    num_draft = torch.tensor(metadata.num_draft_tokens, device=logits.device)
    first = metadata.bonus_logits_indices.long() - num_draft
    output: SamplerOutput = sampler(logits=logits[first], sampling_metadata=sampling_metadata)
    return output


def _verify(
    rejection_sampler: Any,
    metadata: SpecDecodeMetadata,
    logits: torch.Tensor,
    sampling_metadata: SamplingMetadata,
) -> tuple[SamplerOutput, list[int]]:
    """Return what is emitted, and how many tokens of each request."""
    from vllm.v1.outputs import SamplerOutput

    raw = logits[metadata.target_logits_indices].to(torch.float32)
    wants_logprobs = sampling_metadata.max_num_logprobs is not None
    processed = rejection_sampler.apply_logits_processors(
        raw.clone() if wants_logprobs else raw, sampling_metadata, metadata
    )
    _add_bias(processed, sampling_metadata, metadata.num_draft_tokens)
    # Drafted rows before bonus rows: each generator gives its numbers in the order of the tokens.
    sampled, of_processed = rejection_sampler.sampler.sample(
        processed, _of_rows(sampling_metadata, metadata.num_draft_tokens)
    )
    bonus = rejection_sampler.sampler(
        logits=logits[metadata.bonus_logits_indices],
        sampling_metadata=replace(sampling_metadata, max_num_logprobs=-1),
        predict_bonus_token=True,
        logprobs_mode_override="processed_logits"
        if rejection_sampler.is_processed_logprobs_mode
        else "raw_logits",
    )
    tokens, num_emitted = _emitted(
        sampled.numpy(),
        metadata.draft_token_ids.numpy(),
        bonus.sampled_token_ids.numpy()[:, 0],
        metadata.num_draft_tokens,
    )
    logprobs = None
    if wants_logprobs:
        logprobs = rejection_sampler._get_logprobs_tensors(
            sampling_metadata.max_num_logprobs,
            metadata,
            logits,
            of_processed if rejection_sampler.is_processed_logprobs_mode else raw,
            bonus.logprobs_tensors.logprobs,
            tokens,
        )
    return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=logprobs), num_emitted


def _of_rows(sampling_metadata: SamplingMetadata, num_draft: list[int]) -> SamplingMetadata:
    """Describe drafted rows, whose logits are processed, as the sampler is told of requests."""
    from vllm.v1.sample.logits_processor import LogitsProcessors

    counts = torch.tensor(num_draft)
    min_p, _ = _processors(sampling_metadata)
    if min_p is not None and min_p.min_p_count:
        min_p = min_p_of_rows(min_p, counts)

    def expand(values: torch.Tensor | None) -> torch.Tensor | None:
        return None if values is None else values.repeat_interleave(counts)

    first_row = np.cumsum([0, *num_draft]).tolist()
    generators = {
        row: generator
        for request, generator in sorted(sampling_metadata.generators.items())
        for row in range(first_row[request], first_row[request + 1])
    }
    return replace(
        sampling_metadata,
        temperature=expand(sampling_metadata.temperature),
        top_k=expand(sampling_metadata.top_k),
        top_p=expand(sampling_metadata.top_p),
        generators=generators,
        logitsprocs=LogitsProcessors([] if min_p is None else [min_p]),
    )


def _add_bias(
    logits: torch.Tensor,  # [num_draft, vocab]
    sampling_metadata: SamplingMetadata,
    num_draft: list[int],
) -> None:
    """Apply each request's `logit_bias` to its drafted rows, in place. Bad words and the like have
    taken tokens out before, which no bias brings back."""
    _, bias = _processors(sampling_metadata)
    if bias is None:
        return
    first_row = np.cumsum([0, *num_draft]).tolist()
    for request, of_tokens in bias.biases.items():
        rows = slice(first_row[request], first_row[request + 1])
        logits[rows, list(of_tokens)] += torch.tensor(list(of_tokens.values()))


def _processors(sampling_metadata: SamplingMetadata) -> tuple[Any, Any]:
    """Return vLLM's processors for `min_p` and for `logit_bias`, of those that are there."""
    from vllm.v1.sample.logits_processor.builtin import (
        LogitBiasLogitsProcessor,
        MinPLogitsProcessor,
    )

    found = {type(processor): processor for processor in sampling_metadata.logitsprocs.all}
    return found.get(MinPLogitsProcessor), found.get(LogitBiasLogitsProcessor)


def _emitted(
    sampled: np.ndarray[Any, Any],  # [num_draft]
    drafted: np.ndarray[Any, Any],  # [num_draft]
    bonus: np.ndarray[Any, Any],  # [batch]
    num_draft: list[int],
) -> tuple[torch.Tensor, list[int]]:
    """Return the tokens, [batch, longest draft + 1] int32 with -1 after each request's last one,
    and how many they are."""
    tokens = np.full((len(num_draft), max(num_draft) + 1), -1, dtype=np.int32)
    num_emitted = []
    row = 0
    for request, count in enumerate(num_draft):
        own = sampled[row : row + count]
        misses = np.flatnonzero(own != drafted[row : row + count])
        num_kept = int(misses[0]) + 1 if misses.size else count
        tokens[request, :num_kept] = own[:num_kept]
        if not misses.size:
            tokens[request, count] = bonus[request]
        num_emitted.append(num_kept + (not misses.size))
        row += count
    return torch.from_numpy(tokens), num_emitted
