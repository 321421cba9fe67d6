"""When an engine's front end reports, and when it asks the workers."""

import asyncio
import contextlib
import weakref
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY
from vllm.v1.engine.output_processor import OutputProcessor

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.engine_client.reporting import keep_reporting
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.retrieval.api.answer import Answer
from reprise.retrieval.api.config import RetrievalConfig
from reprise.retrieval.in_process.local_retriever import LocalRetriever
from reprise.tests.engine_ext.front_ends import vllm_config

INTERVAL_S = 0.02


class Engine:
    """Remembers its reports: whether each asked the workers."""

    errored = False

    def __init__(self, front_end: FrontEnd) -> None:
        self.front_end = front_end
        self.num_unfinished = 0
        self.reports: list[bool] = []

    def get_num_unfinished_requests(self) -> int:
        return self.num_unfinished

    async def report(self, *, with_workers: bool) -> None:
        self.reports.append(with_workers)
        self.front_end.figures.report([] if with_workers else None)

    async def next_reports(self, count: int) -> list[bool]:
        """Wait for so many more reports; the first of them began before this was called."""
        begin = len(self.reports) + 1
        while len(self.reports) < begin + count:
            await asyncio.sleep(INTERVAL_S / 4)
        return self.reports[begin : begin + count]


@pytest.fixture
def retriever() -> Any:
    retriever = LocalRetriever(RetrievalConfig(embedding_model="lexical", clauses=False))
    yield retriever
    retriever.close()


def front_end_with(retriever: LocalRetriever) -> FrontEnd:
    processor = OutputProcessor(None, log_stats=False)
    return FrontEnd(vllm_config(), load_config({}), processor, retriever=retriever)


def held() -> float:
    name = "reprise:retrieval_answers"
    [metric] = [each for each in REGISTRY.collect() if each.name == name]
    return sum(sample.value for sample in metric.samples)


def test_an_idle_servers_figures_follow_what_others_answer(retriever: LocalRetriever) -> None:
    engine = Engine(front_end_with(retriever))

    async def watch() -> None:
        reporting = asyncio.create_task(keep_reporting(weakref.ref(engine), INTERVAL_S))  # type: ignore[arg-type]
        await engine.next_reports(2)
        assert await engine.next_reports(2) == [False, False]  # nothing happens: no worker is asked
        assert held() == 0
        retriever.store(
            Answer.create(prompt_token_ids=[1, 2], response_token_ids=[3, 4], prompt_text="hello")
        )
        assert await asyncio.to_thread(retriever.flush, 30.0)
        assert True in await engine.next_reports(3)
        assert held() == 1
        await engine.next_reports(2)
        assert await engine.next_reports(2) == [False, False]
        engine.num_unfinished = 1
        await engine.next_reports(1)
        assert await engine.next_reports(2) == [True, True]
        reporting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reporting

    asyncio.run(watch())


def test_what_fails_is_counted_and_tried_again(retriever: LocalRetriever) -> None:
    engine = Engine(front_end_with(retriever))
    engine.front_end.figures = SimpleNamespace(  # type: ignore[assignment]
        progress=tuple, report=lambda _: 1 / 0
    )

    async def watch() -> None:
        reporting = asyncio.create_task(keep_reporting(weakref.ref(engine), INTERVAL_S))  # type: ignore[arg-type]
        await engine.next_reports(2)
        assert engine.front_end.errors.counts()["report"] >= 2
        reporting.cancel()

    asyncio.run(watch())
