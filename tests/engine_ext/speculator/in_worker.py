"""Run in the workers of an engine on V2: what tests see and change there.

Functions take the worker first, and what they return has to be such as JSON can say.
"""

from typing import Any

_steps: list[dict[str, Any]] = []


def watch_verification(worker: Any) -> None:
    """Have what vLLM's adaptive verification decides kept, see `verified_steps`."""
    manager = worker.model_runner.adaptive_verification
    reallocate = manager.reallocate_drafts

    def watched(req_ids: list[str], idx_mapping: Any) -> Any:
        scheduled, _, budget = manager._batch_budget
        expected = manager._stale_confidences[manager._stale_idx].np[idx_mapping.numpy()]
        chances = manager._confidence_probs[idx_mapping].tolist()
        result = reallocate(req_ids, idx_mapping)
        _steps.append(
            {
                "requests": [request_id.split("-")[0] for request_id in req_ids],
                "scheduled": [scheduled[request_id] for request_id in req_ids],
                "admitted": (result[0].diff() - manager.num_bonus_tokens).tolist(),
                "budget": budget,
                "expected": expected.tolist(),
                "chances": chances,
            }
        )
        return result

    manager.reallocate_drafts = watched


def verified_steps(_: Any) -> list[dict[str, Any]]:
    """Return the steps with drafts since the last call. By request: how many tokens it had, how many
    of them were verified, the chances by which their number was decided, and their own."""
    taken = _steps.copy()
    _steps.clear()
    return taken
