"""Has a function made before the first request by which vLLM ranks the tokens of a prompt.

A stored answer is verified by prompt logprobs. For them model runner V1 ranks tokens with a
function that `torch.compile` makes when it is first called: the first verified answer would wait
for that, with all that is under way beside it, and without a C++ compiler it would end the engine.
So it is made while the engine starts. Until it is there, and where it cannot be made, tokens are
ranked without it.

The hook of `Feature.PROMPT_RANKS`, in the worker.
"""

import threading
import time

import torch
from vllm.logger import init_logger
from vllm.v1.sample.ops import logprobs

logger = init_logger(__name__)

MAX_SECONDS = 5.0
"""A server's start is not to be held up by much more than this."""
# So few that what is made of them stays in a processor's cache.
_LOGITS_AT_ONCE = 1 << 18
_compiled_for: set[int] = set()
"""Sizes of vocabularies."""


def batched_count_greater_than(
    x: torch.Tensor,  # [num_tokens, vocabulary_size] float32
    values: torch.Tensor,  # [num_tokens, 1] float32
) -> torch.Tensor:
    """Count in each row what is not less than its value: [num_tokens] int64."""
    if x.shape[1] in _compiled_for:
        ranks: torch.Tensor = logprobs.batched_count_greater_than(x, values)
        return ranks
    return count_in_parts(x, values)


def count_in_parts(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Return the same without anything that is compiled, a few rows at a time: all at once would
    take nine more bytes a logit."""
    at_once = max(1, _LOGITS_AT_ONCE // max(1, x.shape[1]))
    places = [slice(first, first + at_once) for first in range(0, len(x), at_once)]
    return torch.cat([(x[place] >= values[place]).sum(-1) for place in places])


def compile_at_start(vocabulary_size: int) -> None:
    """Have vLLM's function made for a model with so many tokens, and wait for it.

    Beyond `MAX_SECONDS` it is made in the background. Never raises because it cannot be made.
    """
    making = threading.Thread(
        target=_compile, args=(vocabulary_size,), name="reprise-compile", daemon=True
    )
    making.start()
    making.join(MAX_SECONDS)


def _compile(vocabulary_size: int) -> None:
    began_s = time.perf_counter()
    try:
        # As `Sampler.gather_logprobs` calls it: any number of rows, in inference mode.
        with torch.inference_mode():
            x, values = torch.zeros(2, vocabulary_size), torch.zeros(2, 1)
            torch._dynamo.decorators.mark_unbacked(x, 0)
            torch._dynamo.decorators.mark_unbacked(values, 0)
            logprobs.batched_count_greater_than(x, values)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        logger.warning(
            "Reprise: vLLM's function that ranks the tokens of a prompt cannot be compiled (%s); "
            "they are ranked without it, which takes longer.",
            reason,
        )
        return
    _compiled_for.add(vocabulary_size)
    logger.info(
        "Reprise: made the function that ranks the tokens of a prompt in %.1f s.",
        time.perf_counter() - began_s,
    )
