"""What an engine with Reprise reports once nothing is under way in it."""

import time
from typing import Any

_LOOK_EVERY_S = 0.01


def settled_report(llm: Any, *, timeout_s: float = 600.0) -> dict[str, Any]:
    """Wait until what the engine has answered is stored, and drafted from; returns its report.

    An engine gives out the end of an answer a step before its worker hears of it.

    Args:
        llm: A `vllm.LLM` with one worker, whose requests have all been answered.

    Raises:
        TimeoutError: there is still a live request, or something to store.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        (report,) = llm.collective_rpc("reprise_stats")
        if not report["live_requests"]:
            break
        if time.monotonic() > deadline:
            raise TimeoutError(f"{report['live_requests']} requests have not ended")
        time.sleep(_LOOK_EVERY_S)
    remaining_s = max(0.0, deadline - time.monotonic())
    if llm.collective_rpc("reprise_flush", args=(remaining_s,)) != [True]:
        raise TimeoutError(f"answers were not stored within {timeout_s:g} s")
    (report,) = llm.collective_rpc("reprise_stats")
    return dict(report)
