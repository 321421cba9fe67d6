"""What fails under a real retrieval process is in the health report, and leaves it again."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from reprise.engine_ext.engine_client.health import health_report
from reprise.eval.live.redis_server import RedisServer
from reprise.retrieval import RetrievalConfig
from reprise.retrieval.service.process_retriever import ProcessRetriever

WaitUntil = Callable[..., Any]


@pytest.fixture
def start() -> Iterator[Callable[..., ProcessRetriever]]:
    started: list[ProcessRetriever] = []

    def start(**settings: Any) -> ProcessRetriever:
        config = RetrievalConfig(clauses=False, **{"embedding_model": "lexical", **settings})
        started.append(ProcessRetriever(config, for_front_end=True))
        return started[-1]

    yield start
    for retriever in started:
        retriever.close()


def report(retriever: ProcessRetriever) -> dict[str, Any]:
    return health_report(is_dead=False, errors=None, retrieval=[retriever.health()], num_pending=0)


@pytest.mark.slow
@pytest.mark.redis
def test_it_is_degraded_while_redis_is_frozen(
    start: Callable[..., ProcessRetriever], redis_server: RedisServer, wait_until: WaitUntil
) -> None:
    retriever = start(url=redis_server.url)
    wait_until(lambda: report(retriever)["components"]["retrieval"]["state"] == "ready")
    redis_server.freeze()
    try:
        # It may be writing that fails first, or the process that is silent for a while.
        wait_until(
            lambda: "redis: cannot read" in report(retriever)["components"]["retrieval"]["detail"]
        )
        assert report(retriever)["state"] == "degraded"
        assert report(retriever)["components"]["retrieval_tier"]["state"] == "degraded"
    finally:
        redis_server.thaw()
    wait_until(lambda: report(retriever)["state"] == "ready")
    assert report(retriever)["components"]["retrieval_tier"]["breakers"]["read"] == "closed"


def test_it_is_degraded_while_the_retrieval_process_is_dead(
    start: Callable[..., ProcessRetriever], may_start: threading.Event, wait_until: WaitUntil
) -> None:
    retriever = start()
    wait_until(lambda: report(retriever)["components"]["retrieval"]["state"] == "ready")
    assert report(retriever)["components"]["retrieval"]["ready_after_s"] > 0
    assert retriever.pid is not None
    may_start.clear()
    os.kill(retriever.pid, signal.SIGKILL)
    wait_until(lambda: report(retriever)["state"] == "degraded")
    may_start.set()
    wait_until(lambda: report(retriever)["state"] == "ready")


@pytest.mark.slow
def test_it_is_degraded_without_the_embedding_model(
    start: Callable[..., ProcessRetriever],
    may_start: threading.Event,
    wait_until: WaitUntil,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    may_start.clear()
    retriever = start(embedding_model="no-such-model")
    assert report(retriever)["state"] == "ready"  # starting: it may yet come
    may_start.set()
    wait_until(lambda: report(retriever)["state"] == "degraded")
    assert "no-such-model is unavailable" in report(retriever)["components"]["retrieval"]["detail"]
