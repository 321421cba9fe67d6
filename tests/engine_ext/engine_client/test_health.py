"""The health report: its parts, the whole, and how it recovers."""

from typing import Any

from reprise.engine_ext.core.error_counter import RECENT_S, ErrorCounter, ReportedErrors
from reprise.engine_ext.engine_client.health import health_report
from reprise.retrieval.api.retriever import RetrievalHealth


def test_health_asks_nobody_shows_its_parts_and_recovers() -> None:
    now = [1000.0]
    errors = ErrorCounter(clock=lambda: now[0])

    def report(*retrieval: RetrievalHealth, **given: Any) -> dict[str, Any]:
        options = {"is_dead": False, "errors": errors, "num_pending": 0, **given}
        return health_report(retrieval=retrieval, **options)

    good = RetrievalHealth("ready", tier="redis", breakers={"read": "closed"})
    assert report(good)["state"] == "ready"
    assert report(RetrievalHealth("starting"))["state"] == "ready"
    dead_redis = RetrievalHealth("degraded", tier="redis", breakers={"read": "open"})
    told = report(dead_redis)
    assert told["state"] == "degraded"
    assert told["components"]["retrieval_tier"]["state"] == "degraded"
    assert told["components"]["engine"]["state"] == "ready"
    gone = RetrievalHealth("degraded", detail="no retrieval process")
    assert report(good, gone)["components"]["retrieval_1"]["detail"] == "no retrieval process"
    assert report(good, num_pending=1)["state"] == "degraded"
    assert report(good, is_dead=True)["state"] == "dead"
    of_workers = ReportedErrors(clock=lambda: now[0])
    # Nothing is said of workers that this process has not heard of.
    for untold in (None, of_workers):
        assert "workers" not in report(good, worker_errors=untold)["components"]
    of_workers.take([{"errors": {"save weights": 2}}])
    told = report(good, worker_errors=of_workers)
    assert told["state"] == told["components"]["workers"]["state"] == "degraded"
    assert told["components"]["front_end"]["state"] == "ready"
    assert told["errors"] == {"save weights": 2}
    errors.record("watch", ValueError("once"))
    assert report(good)["errors"] == {"watch": 1}
    assert report(good)["state"] == "degraded"
    now[0] += RECENT_S + 1
    assert report(good, worker_errors=of_workers)["state"] == "ready"
    assert errors.counts() == {"watch": 1}
