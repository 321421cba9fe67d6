"""Thinking budgets on model runner V1, kept as by an engine without speculation.

vLLM's holder of budgets counts ahead by what is drafted, and finds the rows in which it forces the
end of thinking by how many drafts each request has. With drafts its answers are others than
without; in a step that is sampled without any, it takes all rows for the first one. So requests
with a budget have no drafts (`undrafted_settings`), and the holder is the one of an engine that has
none: one row for each request, once a step.
"""

from typing import Any

import torch
from vllm.v1.sample.thinking_budget_state import ThinkingBudgetStateHolder

from reprise.engine_ext.compat.engine_state import set_thinking_budgets


class UndraftedBudgets(ThinkingBudgetStateHolder):  # type: ignore[misc]
    """vLLM's holder, of requests without drafts beside others with drafts.

    Args:
        reasoning_config: vLLM's, of the engine.
        max_num_reqs: of a batch.
        device: of the logits.
    """

    def __init__(self, reasoning_config: Any, max_num_reqs: int, device: torch.device) -> None:
        super().__init__(reasoning_config, max_num_reqs, 0, device, False)
        self._is_due = False

    def update_state(
        self,
        output_token_ids: list[list[int]],
        spec_token_ids: list[list[int]] | None,  # noqa: ARG002 - those of others
        repeat_indices: torch.Tensor | None = None,  # noqa: ARG002 - one row for each request
    ) -> None:
        """Follow the outputs; `apply_to_logits` is called next, with one row for each request."""
        super().update_state(output_token_ids, None)
        self._is_due = True

    def apply_to_logits(
        self,
        logits: torch.Tensor,  # [batch, vocab], or [num_draft, vocab]
        predict_bonus_token: bool,  # noqa: ARG002 - a request without drafts has no other
        spec_token_ids: list[list[int]] | None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Force what is due. Drafted rows, for which `update_state` is not called, stay as they
        are."""
        if not self._is_due:
            return logits
        self._is_due = False
        forced: torch.Tensor = super().apply_to_logits(logits, False, None)
        return forced


def keep_undrafted(runner: Any) -> None:
    """Have a model runner keep budgets as without speculation; before the batch's first request."""
    batch = runner.input_batch
    holder = getattr(batch, "thinking_budget_state_holder", None)
    if type(holder) is ThinkingBudgetStateHolder:
        budgets = UndraftedBudgets(
            runner.vllm_config.reasoning_config, batch.max_num_reqs, batch.device
        )
        set_thinking_budgets(batch, budgets)
