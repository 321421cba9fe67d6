"""Makes matrix kernels of the CPU before the first request instead of in the middle of it.

oneDNN makes a kernel the first time that it multiplies with so many rows. Without drafts a batch
has few different numbers of tokens; with them, nearly every step of a server's first minutes has
another one, and takes half as long again as it should, or twice as long if the model is small.
"""

import time
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.platforms import current_platform

logger = init_logger(__name__)

MAX_TOKENS = 128
"""vLLM keeps the kernels of so many numbers of tokens for each layer."""
MAX_SECONDS = 5.0
"""A server's start is not to be held up by much more than this."""


def make_kernels(runner: Any) -> int:
    """Run the model for one token, two, three..., up to what a step with drafts may verify.

    To be called when the model is loaded and no request is there. Only where there is one worker:
    several would each have to stop at the same number. Not with LoRA, whose logits take a row for
    each request, and nothing else.

    Returns:
        The number of tokens up to which kernels are there; 0 where nothing was to be made.
    """
    is_one_worker = runner.parallel_config.world_size == 1
    if not (current_platform.is_cpu() and is_one_worker and runner.lora_config is None):
        return 0
    began_s = time.perf_counter()
    of_all_requests = runner.max_num_reqs * (1 + runner.num_spec_tokens)
    max_tokens = min(MAX_TOKENS, runner.max_num_tokens, of_all_requests)
    num_tokens = 0
    while num_tokens < max_tokens and time.perf_counter() - began_s < MAX_SECONDS:
        num_tokens += 1
        hidden_states, _ = runner._dummy_run(num_tokens)
        with torch.inference_mode():
            runner.model.compute_logits(hidden_states[:num_tokens])
    logger.info(
        "Reprise: made kernels for steps of up to %d tokens in %.1f s.",
        num_tokens,
        time.perf_counter() - began_s,
    )
    return num_tokens
