"""Keeps a seed's random numbers for the tokens of its answer, on model runner V1 of a CPU.

A prompt that takes several steps is sampled after each, and all tokens but the last are discarded.
vLLM 0.32 then puts the request's generator back by four, which only generators of a GPU can: on a
CPU the engine ends (`CPU Generator does not use offset`), with any drafter and with none. Here a
row that will be discarded has no generator while its batch is sampled, so nothing is drawn from it.

The hook of `Feature.UNFINISHED_PROMPTS`, in the worker.
"""

from typing import Any

import numpy as np

from reprise.engine_ext.compat.engine_state import without_generators
from reprise.engine_ext.compat.guarded import Original
from reprise.engine_ext.compat.hooks import drafter_of


def sample_without_unfinished(original: Original, runner: Any, *_: Any, **__: Any) -> Any:
    """Run vLLM's `sample_tokens`, where requests with unfinished prompts have no generators."""
    batch = runner.input_batch
    if not batch.generators or drafter_of(runner) is None:
        return original()
    is_discarded = runner.discard_request_mask.np[: batch.num_reqs]
    with without_generators(batch, np.flatnonzero(is_discarded).tolist()):
        return original()
