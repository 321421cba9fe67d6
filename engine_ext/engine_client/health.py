"""Reports the health of engine and cache for `/reprise/health`, without asking the workers."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from reprise.engine_ext.core.error_counter import ErrorCounter, ReportedErrors
from reprise.retrieval.api.retriever import RetrievalHealth


def health_report(
    *,
    is_dead: bool,
    errors: ErrorCounter | None,
    retrieval: Sequence[RetrievalHealth],
    num_pending: int,
    worker_errors: ReportedErrors | None = None,
) -> dict[str, Any]:
    """Return the state of the whole and of its parts.

    Args:
        is_dead: Whether the engine is dead.
        errors: Of the front end; what failed long ago does not count.
        retrieval: Of each retrieval process that is known.
        num_pending: Invalidations that some store has yet to carry out.
        worker_errors: Of the workers, as they last reported to this process; None, or none has yet:
            nothing is said of them.

    Returns:
        `state` is `dead`, `degraded` (requests are answered, something of ours does not work) or
        `ready`; `components` holds the state of each part, `errors` the recent ones by place.
    """
    recent = {} if errors is None else errors.recent()
    tells = worker_errors is not None and worker_errors.has_reports
    of_workers = worker_errors.recent() if worker_errors is not None else {}
    components: dict[str, dict[str, Any]] = {
        "engine": {"state": "dead" if is_dead else "ready"},
        "front_end": {"state": "degraded" if recent else "ready"},
        **({"workers": {"state": "degraded" if of_workers else "ready"}} if tells else {}),
        "forgetting": {"state": "degraded" if num_pending else "ready", "pending": num_pending},
    }
    for number, health in enumerate(retrieval):
        name = "retrieval" if len(retrieval) == 1 else f"retrieval_{number}"
        components[name] = {
            "state": health.state,
            "detail": health.detail,
            "embedder": health.embedder,
            "ready_after_s": health.ready_after_s,
        }
        if health.tier:
            is_open = any(state != "closed" for state in health.breakers.values())
            components[f"{name}_tier"] = {
                "state": "degraded" if is_open else "ready",
                "tier": health.tier,
                "breakers": dict(health.breakers),
            }
    works = ("ready", "starting")
    is_degraded = any(part["state"] not in works for part in components.values())
    state = "dead" if is_dead else "degraded" if is_degraded else "ready"
    return {
        "state": state,
        "components": components,
        "errors": dict(Counter(recent) + Counter(of_workers)),
    }
