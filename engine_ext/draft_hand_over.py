"""Drafts travel to the scheduler with the tokens of the step that they follow.

Where workers are processes of their own, vLLM fetches drafts by a further call after every step,
while model and scheduler both wait: about a tenth of a step of 3 ms. The worker attaches them to
the step's output instead, and the executor, asked for them, has them already. Where either side is
not as expected, vLLM's own call remains.
"""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm.v1.executor.multiproc_executor import MultiprocExecutor
from vllm.v1.outputs import ModelRunnerOutput

_ATTACHED = "_reprise_draft_token_ids"
_EXPECTED_PARAMETERS = {
    "sample_tokens": ("self", "grammar_output", "non_block"),
    "take_draft_token_ids": ("self",),
}


def attach(runner: Any, output: Any) -> None:
    """In the worker: put the runner's drafts on the output [B] of the step that made them."""
    if isinstance(output, ModelRunnerOutput) and not runner.use_async_scheduling:
        setattr(output, _ATTACHED, runner.take_draft_token_ids())


def install() -> None:
    """In the engine core: have `MultiprocExecutor` use the drafts that came with the output.

    Raises:
        RuntimeError: vLLM's executor is not as expected; it is left as it is.
    """
    if getattr(MultiprocExecutor, "_reprise_hand_over", False):
        return
    for name, expected in _EXPECTED_PARAMETERS.items():
        found = tuple(inspect.signature(getattr(MultiprocExecutor, name)).parameters)
        if found != expected:
            raise RuntimeError(f"MultiprocExecutor.{name}{found} is not as expected {expected}")
    sample: Callable[..., Any] = MultiprocExecutor.sample_tokens
    take: Callable[..., Any] = MultiprocExecutor.take_draft_token_ids

    @wraps(sample)
    def sample_tokens(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = sample(self, *args, **kwargs)
        self._reprise_drafts = getattr(output, _ATTACHED, None)
        return output

    @wraps(take)
    def take_draft_token_ids(self: Any) -> Any:
        drafts = getattr(self, "_reprise_drafts", None)
        self._reprise_drafts = None
        return take(self) if drafts is None else drafts

    MultiprocExecutor.sample_tokens = sample_tokens
    MultiprocExecutor.take_draft_token_ids = take_draft_token_ids
    MultiprocExecutor._reprise_hand_over = True
