"""Spans beside vLLM's own, seen by OpenTelemetry's exporter in memory."""

import time
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

from reprise.engine_ext.core.config import load_config
from reprise.engine_ext.frontend.front_end import FrontEnd
from reprise.engine_ext.frontend.spans import Spans
from reprise.engine_ext.request.request_control import RequestControl
from reprise.engine_ext.request.request_policy import RequestPolicy
from reprise.retrieval.api.retriever import RetrievalHealth
from reprise.tests.engine_ext.front_ends import core_request, vllm_config

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    return exporter


class InstantRetriever:
    """Finds nothing, 20 ms after it was asked."""

    def __init__(self) -> None:
        self._begun_s: dict[str, float] = {}

    def submit(self, request_id: str, **_asked: Any) -> None:
        self._begun_s[request_id] = time.monotonic()

    def poll(self, _request_id: str) -> list[Any]:
        return []

    def health(self) -> RetrievalHealth:
        return RetrievalHealth("ready")

    def found_s(self, request_id: str) -> float:
        return self._begun_s[request_id] + 0.02

    def store(self, _answer: Any) -> None: ...

    def discard(self, _request_id: str) -> None: ...


def front_end(*, tracing: bool) -> FrontEnd:
    processor = OutputProcessor(None, log_stats=False, tracing_enabled=tracing)
    retriever: Any = InstantRetriever()
    return FrontEnd(vllm_config(), load_config({}), processor, retriever=retriever)


def ask(front: FrontEnd, request_id: str) -> None:
    """One request, generated in a step unless the cache has it."""
    params = SamplingParams(
        output_kind=RequestOutputKind.FINAL_ONLY, detokenize=False, temperature=0
    )
    request = core_request(request_id, params, trace_headers=PARENT)
    queue = RequestOutputCollector(RequestOutputKind.FINAL_ONLY, request_id)
    if not front.answer(request, None, queue, RequestPolicy(RequestControl(), "")):
        processor = front._replayer._processor
        processor.add_request(request, None, None, 0, queue)
        output = EngineCoreOutput(
            request_id=request_id, new_token_ids=[5, 6], finish_reason=FinishReason.STOP
        )
        # Without statistics vLLM has no span of its own to make.
        processor.tracing_enabled = False
        processor.process_outputs([output], None, None, "default")


def test_look_up_and_retrieval_are_children_of_the_clients_span(
    exporter: InMemorySpanExporter,
) -> None:
    front = front_end(tracing=True)
    before_ns = time.time_ns()
    ask(front, "first")
    ask(front, "again")
    spans = exporter.get_finished_spans()
    kinds = [(span.name, (span.attributes or {})["reprise.kind"]) for span in spans]
    assert kinds == [
        ("reprise.exact_lookup", "miss"),
        ("reprise.retrieval", "miss"),
        ("reprise.exact_lookup", "exact"),
    ]
    assert front.errors.counts() == {}
    for span in spans:
        assert span.parent is not None
        assert f"{span.parent.trace_id:032x}" == TRACE_ID
        assert span.start_time is not None
        assert span.end_time is not None
        assert before_ns - 1e6 < span.start_time <= span.end_time
    retrieval = spans[1]
    took_ms = (retrieval.end_time - retrieval.start_time) / 1e6  # type: ignore[operator]
    assert 20 <= took_ms < 60_000  # what comes on top is how long the machine stood still


def test_no_spans_without_vllms_tracing(exporter: InMemorySpanExporter) -> None:
    ask(front_end(tracing=False), "first")
    assert exporter.get_finished_spans() == ()


def test_a_search_that_has_not_ended_is_no_span(exporter: InMemorySpanExporter) -> None:
    Spans(enabled=True).retrieval(PARENT, kind="miss", begun_s=time.monotonic(), found_s=None)
    assert exporter.get_finished_spans() == ()
