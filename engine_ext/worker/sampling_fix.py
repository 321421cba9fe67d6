"""Replaces vLLM's expansion of sampling parameters where it does not expand.

On the CPU, vLLM 0.32 expands the per-request temperature, top-k and top-p of drafted rows into an
int64 copy of the output and drops the copy: the rows are then scaled by whatever was in memory,
and sampled answers of *any* drafter are distributed wrongly. Greedy answers are not affected.

The hook of `Feature.SAMPLING_FIX`, in the worker.
"""

import torch


def expand_batch_to_tokens(
    x: torch.Tensor,  # [batch_size]
    cu_num_tokens: torch.Tensor,  # [batch_size] cumulative
    num_tokens: int,
    replace_from: int = 0,
    replace_to: int = 0,
) -> torch.Tensor:
    """Repeat each request's value for each of its drafted tokens: [num_tokens], dtype of `x`.

    For x = [a, b, c] and cu_num_tokens = [2, 5, 6]: [a, a, b, b, b, c], with `replace_from`
    replaced by `replace_to`.
    """
    counts = torch.diff(cu_num_tokens, prepend=cu_num_tokens.new_zeros(1))
    expanded = x.repeat_interleave(counts.long(), output_size=num_tokens)
    return expanded.masked_fill(expanded == replace_from, replace_to)


def is_needed() -> bool:
    """Return whether vLLM's own function fails a four-row check on the CPU."""
    from vllm.v1.sample import rejection_sampler

    return not (torch.cuda.is_available() or _expands(rejection_sampler.expand_batch_to_tokens))


def _expands(function: object) -> bool:
    values = torch.tensor([0.5, 0.0, 1.5])
    cumulative = torch.tensor([2, 2, 4], dtype=torch.int32)
    try:
        found = function(values, cumulative, 4, replace_from=0, replace_to=1)  # type: ignore[operator]
    except Exception:
        return False
    return torch.equal(found, torch.tensor([0.5, 0.5, 1.5, 1.5]))
