"""Makes OpenTelemetry spans of what the front end does, where vLLM's own tracing is on."""

import time
from collections.abc import Mapping

from vllm.tracing import extract_trace_context, instrument_manual


class Spans:
    """Makes children of the span that the client sent along, as vLLM's own `llm_request` is."""

    def __init__(self, *, enabled: bool) -> None:
        self._enabled = enabled

    def exact_lookup(
        self, trace_headers: Mapping[str, str] | None, *, kind: str, took_s: float
    ) -> None:
        """Record the look-up that has just ended: `kind` is exact, followed or miss."""
        if self._enabled:
            ended_ns = time.time_ns()
            instrument_manual(
                span_name="reprise.exact_lookup",
                start_time=ended_ns - int(took_s * 1e9),
                end_time=ended_ns,
                attributes={"reprise.kind": kind},
                context=extract_trace_context(trace_headers),
            )

    def retrieval(
        self,
        trace_headers: Mapping[str, str] | None,
        *,
        kind: str,
        begun_s: float,
        found_s: float | None,
    ) -> None:
        """Record a search for near answers, once its request is over.

        Args:
            trace_headers: of the request.
            kind: what was there at the first token: semantic, clause or miss.
            begun_s: in seconds of `time.monotonic`.
            found_s: the same; None: the search had not ended by then, and no span is made.
        """
        if self._enabled and found_s is not None:
            monotonic_to_epoch_ns = time.time_ns() - time.monotonic_ns()
            instrument_manual(
                span_name="reprise.retrieval",
                start_time=int(begun_s * 1e9) + monotonic_to_epoch_ns,
                end_time=int(found_s * 1e9) + monotonic_to_epoch_ns,
                attributes={"reprise.kind": kind},
                context=extract_trace_context(trace_headers),
            )
